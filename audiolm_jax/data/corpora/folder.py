"""A folder of recordings in any format that libsndfile reads.

The text of a recording comes from the first of these that is there, capitals in their names or not:

1. a JSONL manifest, when `corpus.path` is one or the folder holds `manifest.jsonl`. Only what it lists is used. A
   line has `path` (or `audio_filepath`, `file_name`; relative to the manifest) and `text`, and may have `key`,
   `speaker`, `split`, `words` ([[word, start, end], ...] in seconds), and the part of the recording that is meant:
   `start` or `offset`, `end` or `duration`, in seconds (columns.py; all times count from the recording's beginning);
2. `metadata.csv`, `metadata.tsv` or `metadata.jsonl`, for recordings in its folder and below it: as LJSpeech has it
   (`id|text` or `id|text|normalised text`, recordings in `wavs/` or beside), or with named columns (layouts.py);
3. a file of the same name ending in `.txt`.

Lists in folders below count for their folder, a `manifest.jsonl` there too.

Without a list that says otherwise the speaker is the name of the recording's folder (none for the top folder and for
`wavs`), and the split comes from a hash of the recording's path, so all parts of a recording are in one split. What is
hidden is left out, and links are followed (tree.py). Recordings over corpus.max_seconds are cut (cut.py).
"""

import collections
import concurrent.futures
import dataclasses
import functools
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import numpy as np

from audiolm_jax import files
from audiolm_jax.data.corpora import CorpusConfig, Reject, Utterance, checks, cut, layouts, manifest, sound, tree
from audiolm_jax.data.corpora.cut import Part
from audiolm_jax.data.corpora.manifest import Record
from audiolm_jax.errors import InputError

MANIFEST, LINES = "manifest.jsonl", "metadata.jsonl"
_LISTS = (".csv", ".tsv", ".jsonl", ".json", ".xlsx", ".parquet", ".trans.txt")  # may hold texts; said if none is read
_AT_ONCE = 8  # headers read at the same time


@dataclass(frozen=True)
class Recording:
    """A recording of the corpus before it is checked: an utterance without its samples, of `part` (None: all)."""

    path: Path
    key: str
    source: str
    text: str | bytes | None
    speaker: str = ""
    split: str = ""
    hashed: str = ""  # what decides on the split where none is given; "" for files that are no recordings to us
    words: cut.Words = ()
    part: Part | None = None
    reason: str = ""
    hint: str = ""
    where: str = ""  # the line about it
    lists: str = "the manifest"


def utterances(config: CorpusConfig, directory: Path, progress: bool = True) -> list[Utterance]:
    """Lists the recordings of `config.path`, or of `directory` where that is empty; see `corpora.utterances`.

    Raises:
      InputError: there is no such folder, no recording in it, or a list that cannot be used.
    """
    root = files.local(config.path or directory, "corpus.path").expanduser()
    if not root.exists():
        raise InputError(f"corpus.path = {str(root)!r} does not exist; give a folder of recordings or a JSONL manifest")
    try:
        if root.is_file() and root.suffix.lower() not in (".jsonl", ".json"):
            raise InputError(
                f"corpus.path = {str(root)!r} is a file; give a folder of recordings or a manifest ending in .jsonl"
            )
        listed = [root] if root.is_file() else [path for path in root.iterdir() if tree.same(path.name) == MANIFEST]
        if len(listed) > 1:
            raise InputError(f"{root} holds {' and '.join(sorted(path.name for path in listed))}; keep one of them")
        recordings = _from_manifest(listed[0]) if listed else _from_files(root)
    except OSError as error:
        raise InputError(f"cannot read the corpus in {root}: {error.strerror}") from error
    if not recordings:
        raise InputError(
            f"no recordings in {root}: expected files ending in {', '.join(sound.SUFFIXES)}, or a manifest"
        )
    recordings = _distinct(recordings)
    hashed = [recording.hashed for recording in recordings if recording.hashed]
    splits = dict(zip(hashed, checks.splits(hashed, config.valid_fraction, config.test_fraction), strict=True))
    recordings = [replace(one, split=one.split or splits.get(one.hashed, "train")) for one in recordings]
    with concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as pool:
        return [item for items in pool.map(functools.partial(_utterances, config), recordings) for item in items]


def load(path: str, config: CorpusConfig, reason: str = "", part: Part | None = None) -> tuple[np.ndarray, int]:
    """Reads one recording: (waveform float32 [samples], or [2, samples] with corpus.channels = 2; the corpus's rate).

    Args:
      reason: why this recording was rejected when the corpus was listed, "" if it was not.
      part: what is read of it, None for all.

    Raises:
      Reject: with the reason.
    """
    if reason:
        raise Reject(reason)
    if part is not None:
        return checks.prepare(*sound.some(path, part), config)
    with sound.opened(path) as file:
        if frames := sound.length(file):  # before reading: a file of hours need not be decoded to be refused
            checks.check_duration(frames / file.samplerate, config)
        return checks.prepare(sound.whole(file), file.samplerate, config)


def _utterances(config: CorpusConfig, recording: Recording) -> list[Utterance]:
    """One recording, or its parts if it is too long."""
    part, text, reason = recording.part, "", recording.reason
    found = [("", part, "", recording.words)]  # end of the key, part, text, words
    try:
        text = checks.clean_text(recording.text, config.require_text, recording.hint)
        if not reason:
            part, start, seconds = _measured(config, recording)
            if seconds > config.max_seconds:
                pieces = cut.pieces(seconds, text, recording.words, config, start)
                found = [(f"@{n:04d}", piece.part, piece.text, piece.words) for n, piece in enumerate(pieces)]
            else:
                rate = _rate(recording.path) if part and part.samples else 1.0
                found = [("", part, text, cut.of_part(recording.words, part, rate) if part else recording.words)]
    except Reject as reject:
        reason = reason or str(reject)
    if reason:
        found = [("", part, text, recording.words)]
    return [
        Utterance(
            key=recording.key + end,
            split=recording.split,
            speaker=recording.speaker,
            text=text,
            words=words,
            load=functools.partial(load, str(recording.path), config, reason, part),
            source=recording.source,
            part=dataclasses.astuple(part) if part else (),
        )
        for end, part, text, words in found
    ]


def _measured(config: CorpusConfig, recording: Recording) -> tuple[Part | None, float, float]:
    """(the part that is meant, None for all; where it starts and how long it is, in seconds, 0 where nobody asks).

    Raises Reject if it does not lie in the recording.
    """
    part = recording.part
    short = part and not part.samples and part.stop is not None and part.stop - part.start <= config.max_seconds
    if config.long == "reject" or (short and part.start):  # without a look at the file
        return part, 0.0, 0.0
    try:
        with sound.opened(recording.path) as file:
            rate, frames = file.samplerate, sound.length(file)
    except Reject:  # which loading will tell
        return part, 0.0, 0.0
    if not frames:
        return part, 0.0, 0.0
    first, last = part.inside(rate, frames) if part else (0, frames)
    return (part if (first, last) != (0, frames) else None), first / rate, (last - first) / rate


def _rate(path: Path) -> int:
    with sound.opened(path) as file:
        return file.samplerate


def _from_files(root: Path) -> list[Recording]:
    found = tree.walk(root)
    listed = _listed(found)
    lists = [one for one in found.others if one.inside.name.lower().endswith(_LISTS)]
    unread = [str(one.inside) for one in lists if one.path not in listed.read]
    hint = f"the folder holds {unread[0]}, which is not read; see metadata.csv in README.md" if unread else ""

    keys = [one.inside.with_suffix("").as_posix() for one in found.recordings]
    count = collections.Counter(keys)  # a.wav and a.mp3 side by side keep their suffix
    recordings = []
    for one, key in zip(found.recordings, keys, strict=True):
        if one.path in listed.unlisted:
            continue
        key = one.inside.as_posix() if count[key] > 1 else key
        whole = Recording(one.path, key, one.inside.as_posix(), None, _speaker(one), hashed=key, hint=hint)
        records = listed.records.get(one.path, [])
        if not records or (len(records) == 1 and records[0].text is None):
            text = found.beside(one, (f"{one.path.stem}.txt", f"{one.path.name}.txt"))
            whole = replace(whole, text=text.read_bytes() if text else None)
        recordings += _of_records(whole, records)
    for one in (one for one in found.unusable if one.path not in listed.unlisted):
        reason = f"libsndfile reads no {one.path.suffix} files; convert it, to flac for instance"
        recordings.append(Recording(one.path, one.inside.as_posix(), one.inside.as_posix(), None, reason=reason))
    return recordings + listed.elsewhere


def _speaker(found: tree.Found) -> str:
    folder = found.inside.parent.name
    return "" if tree.plain(folder) else folder


@dataclass
class Listed:
    """What the lists below a folder say: the lines about each recording, lines that name none in the folder, recordings
    beside a manifest that it does not name, and which files were read."""

    records: dict[Path, list[Record]] = field(default_factory=dict)
    elsewhere: list[Recording] = field(default_factory=list)
    unlisted: set[Path] = field(default_factory=set)
    read: set[Path] = field(default_factory=set)


def _listed(found: tree.Tree) -> Listed:
    """All lists below a folder. Where one lies below another, the nearest one counts."""
    lists: dict[PurePosixPath, list[tree.Found]] = {}
    for one in found.others:
        if tree.same(one.inside.name) in (*layouts.NAMES, LINES, MANIFEST):
            lists.setdefault(one.inside.parent, []).append(one)
    out, files = Listed(), (*found.recordings, *found.unusable)
    places = {tree.real(one.path): one for one in files} if lists else {}
    below: dict[PurePosixPath, list[tree.Found]] = {folder: [] for folder in lists}
    for one in files if lists else ():
        for folder in one.inside.parents:
            if folder in below:
                below[folder].append(one)
    for folder in sorted(lists, key=lambda place: len(place.parts)):
        if len(lists[folder]) > 1:
            names = " and ".join(str(one.inside) for one in lists[folder])
            raise InputError(f"{found.root} holds {names}; keep one of them")
        path = lists[folder][0].path
        names = tree.Names(below[folder], folder)
        records = layouts.read(path, names.find) if path.suffix.lower() != ".jsonl" else manifest.read(path)
        own: dict[Path, list[Record]] = {}
        for record in records:
            if not record.path:
                continue
            hits = names.find(record.path)
            file = tree.resolved(path.parent, record.path)
            if not hits and (there := places.get(tree.real(file))):  # ../wavs/a.wav
                hits = [there]
            if len({hit.inside.parent for hit in hits}) > 1:
                said = (
                    f"{path.name} {record.where} names {record.path}, which is in {len(hits)} folders; name the folder"
                )
                record = replace(record, reason=record.reason or said)
            for hit in hits:
                own.setdefault(hit.path, []).append(record)
            if not hits:
                is_path = "/" in record.path or "." in record.path
                name = (folder / (record.path if is_path else f"wavs/{record.path}.wav")).as_posix()
                gone = Recording(file if is_path else found.root / name, _stem(name), name, record.text)
                gone = replace(gone, hashed=gone.key, reason=record.reason, where=record.where, lists=path.name)
                out.elsewhere += _of_records(gone, [record])
        out.records |= own
        out.read.add(path)
        if tree.same(path.name) == MANIFEST:
            out.unlisted |= {one.path for one in below[folder]}
        out.unlisted -= own.keys()
    return out


def _of_records(whole: Recording, records: list[Record]) -> list[Recording]:
    """What the lines of a metadata file say of one recording: itself, or the parts that they name."""
    if not records:
        return [whole]
    out = []
    several = len({record.part for record in records}) > 1
    texts = {record.text for record in records}
    for record in records if several else records[:1]:
        reason = record.reason
        if not several and len(texts) > 1:
            reason = reason or f"it is listed with {len(texts)} texts ({', '.join(r.where for r in records[:3])})"
        key = record.key or (f"{whole.key}@{record.part.name}" if several and record.part else whole.key)
        out.append(
            replace(
                whole,
                key=key,
                text=whole.text if record.text is None else record.text,
                speaker=record.speaker or whole.speaker,
                split=record.split,
                where=record.where,
                lists="the list",
                words=record.words,
                part=record.part,
                reason=reason,
                hint=record.hint or whole.hint,
            )
        )
    return out


def _from_manifest(path: Path) -> list[Recording]:
    records = manifest.read(path)
    count = collections.Counter(record.path for record in records)
    recordings = []
    for record in records:
        stem, several = _stem(record.path), count[record.path] > 1 and record.part
        key = record.key or (f"{stem}@{record.part.name}" if several else stem)
        file, reason = tree.resolved(path.parent, record.path), record.reason
        if file.suffix.lower() in sound.OTHER_SUFFIXES and file.exists():
            reason = f"libsndfile reads no {file.suffix} files; convert it, to flac for instance"
        recordings.append(
            Recording(
                file,
                key,
                record.path,
                record.text,
                record.speaker,
                record.split,
                stem if several else key,
                record.words,
                record.part,
                reason,
                where=record.where,
            )
        )
    return recordings


def _distinct(recordings: Iterable[Recording]) -> list[Recording]:
    """Recordings with different keys: one that repeats a key, or whose names are no Unicode, is rejected."""
    out, seen = [], set()
    for one in recordings:
        names = {name: getattr(one, name) for name in ("key", "source", "speaker", "hashed")}
        printed = {name: tree.printable(value) for name, value in names.items()}
        if printed != names:
            one = replace(one, **printed, reason=one.reason or "its key, path or speaker is not valid Unicode")
        if one.key in seen:
            name = f"{one.source} ({one.where})"
            one = replace(one, key=name, source=name, reason=f"{one.lists} holds the key {one.key!r} more than once")
        seen.add(one.key)
        out.append(one)
    return out


def _stem(name: str) -> str:
    """A path without its suffix, as keys are."""
    path = PurePosixPath(name)
    return path.with_suffix("").as_posix() if path.name else name
