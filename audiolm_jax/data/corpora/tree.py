"""What lies below a folder: recordings, texts and lists, under the names that the folder gives them.

Hidden names are left out. Links to folders are followed, each real folder once, and under its own name rather than that
of a link where it has both. Names are compared as people read them: composed and decomposed letters are the same, and
where nothing else fits, capitals and small letters are.
"""

import contextlib
import os
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from audiolm_jax.data.corpora import sound

# What systems leave in folders, beside names that begin with a dot.
_LEFT_OUT = {"__macosx", "lost+found", "$recycle.bin", "system volume information", "@eadir", "__pycache__"}


@dataclass(frozen=True)
class Found:
    """A file: where it is, and its path inside the folder, as text that can be printed."""

    path: Path
    inside: PurePosixPath


@dataclass
class Tree:
    """The files of a folder in the order of their names. folders: inside path -> its files by their composed names."""

    root: Path
    recordings: list[Found] = field(default_factory=list)
    unusable: list[Found] = field(default_factory=list)
    others: list[Found] = field(default_factory=list)
    folders: dict[PurePosixPath, dict[str, Path]] = field(default_factory=dict)
    _alike: dict[PurePosixPath, dict[str, Path]] = field(
        default_factory=dict
    )  # by `same` names, where it was asked for

    def beside(self, found: Found, names: Iterable[str]) -> Path | None:
        """The first file of these names in the folder of `found`, also one that differs in capitals, unless another
        recording there has its very name."""
        folder = self.folders[found.inside.parent]
        for name in names:
            if _composed(name) in folder:
                return folder[_composed(name)]
        if found.inside.parent not in self._alike:
            self._alike[found.inside.parent] = {same(name): path for name, path in folder.items()}
        for name in names:
            path = self._alike[found.inside.parent].get(same(name))
            if path and not any(_composed(path.stem + suffix) in folder for suffix in sound.SUFFIXES):
                return path
        return None


def same(name: str) -> str:
    """A name as it is compared."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def printable(name: str) -> str:
    r"""A name that is Unicode: bytes that are not UTF-8 as \xe9, half characters as \ud800."""
    try:
        return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:
        return name.encode("utf-8", "backslashreplace").decode("utf-8")


def plain(folder: str) -> bool:
    """Whether a folder of this name holds recordings without naming their speaker."""
    return folder.casefold() in ("", "wavs", "wav", "audio", "clips")


def hidden(name: str) -> bool:
    return name.startswith(".") or name.casefold() in _LEFT_OUT


def walk(root: Path) -> Tree:
    """The tree below `root`. Raises OSError if `root` cannot be listed; folders below that cannot are passed over."""
    tree = Tree(root)
    os.listdir(root)
    seen = {_identity(path) for path in (root.resolve(), *root.resolve().parents)}
    seen.discard(_identity(root))
    links = [(root, PurePosixPath())]
    while links:  # real folders first, so that a link beside them gives them no second name
        links = [link for start in links for link in _folders(tree, *start, seen)]
    for files in (tree.recordings, tree.unusable, tree.others):
        files.sort(key=lambda found: found.inside.parts)
    return tree


def _folders(tree: Tree, start: Path, inside: PurePosixPath, seen: set) -> list[tuple[Path, PurePosixPath]]:
    """Takes in a folder and the real folders below it; returns the linked ones that were met."""
    links, waiting = [], [(start, inside)]
    while waiting:
        folder, inside = waiting.pop()
        try:
            if _identity(folder) in seen:
                continue
            seen.add(_identity(folder))
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            continue
        names = tree.folders.setdefault(inside, {})
        for entry in entries:
            if hidden(entry.name):
                continue
            path, below = folder / entry.name, inside / printable(entry.name)
            with contextlib.suppress(OSError):  # what cannot be looked at is named when it is loaded
                if path.is_dir():
                    (links if entry.is_symlink() else waiting).append((path, below))
                    continue
            names[_composed(entry.name)] = path
            _kind(tree, path.suffix).append(Found(path, below))
    return links


def _kind(tree: Tree, suffix: str) -> list[Found]:
    if suffix.lower() in sound.SUFFIXES:
        return tree.recordings
    return tree.unusable if suffix.lower() in sound.OTHER_SUFFIXES else tree.others


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


class Names:
    """Which recordings a name in a list means: a path below `base`, or a bare name; with or without the suffix.

    A path that names no recording means none, even if a file in another folder has its name.
    """

    def __init__(self, files: Iterable[Found], base: PurePosixPath):
        self._base = base
        # For names as they are written, and as they are compared: by path, by bare name.
        self._tables = [(_composed, {}, {}), (same, {}, {})]
        for found in files:
            if base not in found.inside.parents:
                continue
            inside = found.inside.relative_to(base)
            for change, by_path, by_name in self._tables:
                for table, names in (
                    (by_path, {inside, inside.with_suffix("")}),
                    (by_name, {inside.name, inside.stem}),
                ):
                    for name in {change(str(name)) for name in names}:
                        table.setdefault(name, []).append(found)

    def find(self, name: str) -> list[Found]:
        """The recordings of this name, those of one folder unless several folders have equal claims to it."""
        for written in dict.fromkeys((name.strip(), name.strip().replace("\\", "/"))):
            path = str(PurePosixPath(written)) if written else ""
            for change, by_path, by_name in self._tables:
                if change(path) in by_path:
                    return by_path[change(path)]
                found = by_name.get(change(path), [])
                usual = [
                    one for one in found if one.inside.parent.parent == self._base and plain(one.inside.parent.name)
                ]
                if found:
                    return usual or found
        return []


def real(path: Path) -> str:
    """A path without links, as it is if it is none."""
    try:
        return os.path.realpath(path)
    except (OSError, ValueError):
        return str(path)


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def resolved(base: Path, name: str) -> Path:
    """The file that a list in `base` calls `name`: that very path if it exists, else one that reads the same."""
    exact = base / name
    for path in (exact, base / name.replace("\\", "/")):
        try:
            if path.exists():
                return path
        except (OSError, ValueError):
            return exact
    place = Path(Path(name.replace("\\", "/")).anchor or base)
    for part in PurePosixPath(name.replace("\\", "/")).parts:
        if part in ("/", ".."):
            place = place / part
            continue
        try:
            there = (place / part).exists()
            found = [] if there else [one for one in os.listdir(place) if same(one) == same(part)]
        except (OSError, ValueError):
            return exact
        if not there and len(found) != 1:
            return exact
        place = place / (part if there else found[0])
    return place
