"""Seeded damage to one file of a folder: MUTATIONS, name -> function (file, folder, random numbers) that changes it."""

import json
import os
import random
import shutil
import struct
from pathlib import Path
from typing import Any

DEEP = 100_000
TEXTS = ["", "[1]", "7", "null", "{", "not json", "\ufeff{}", "[" * DEEP, '{"a":' * DEEP, '{"a": ' + "9" * 5000 + "}"]
VALUES = [
    *(None, True, -1, 0, 1, 3, 10**6, 10**9, 10**12, 10**40, 1e308, -1.5, 0.1, float("nan"), float("inf")),
    *("", "x", "9", "../x", "\ud800", "a" * 100_000, [], {}, [None], [[1]], {"a": 1}, list(range(5000)), [0] * 3, 2),
]


def truncate(path: Path, folder: Path, rng: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(len(content) + 1)])


def flip(path: Path, folder: Path, rng: random.Random) -> None:
    """One to eight bits, half of the time near the beginning, where headers are."""
    content = bytearray(path.read_bytes())
    end = len(content) if rng.random() < 0.5 else min(len(content), 400)
    for _ in range(rng.randint(1, 8)):
        if end:
            content[rng.randrange(end)] ^= 1 << rng.randrange(8)
    path.write_bytes(bytes(content))


def overwrite(path: Path, folder: Path, rng: random.Random) -> None:
    """A run of bytes with zeros, ones or noise."""
    content = bytearray(path.read_bytes())
    start = rng.randrange(len(content) + 1)
    length = min(len(content) - start, rng.choice((1, 4, 8, 64, 1024)))
    filler = rng.choice((bytes(length), b"\xff" * length, rng.randbytes(length)))
    content[start : start + length] = filler
    path.write_bytes(bytes(content))


def insert(path: Path, folder: Path, rng: random.Random) -> None:
    content = path.read_bytes()
    at = rng.randrange(len(content) + 1)
    path.write_bytes(content[:at] + rng.randbytes(rng.choice((1, 7, 300))) + content[at:])


def replace(path: Path, folder: Path, rng: random.Random) -> None:
    """The whole content: empty, noise, or a text that is no JSON object."""
    text = rng.choice(TEXTS)
    path.write_bytes(rng.choice((text.encode(), text.encode("utf-16"), rng.randbytes(200))))


def remove(path: Path, folder: Path, rng: random.Random) -> None:
    path.unlink()


def directory(path: Path, folder: Path, rng: random.Random) -> None:
    path.unlink()
    path.mkdir()


def link(path: Path, folder: Path, rng: random.Random) -> None:
    """To itself, to nothing, or to a file that never ends."""
    path.unlink()
    os.symlink(rng.choice((path.name, "nowhere", "/dev/null")), path)


def swap(path: Path, folder: Path, rng: random.Random) -> None:
    """Another file of the folder in its place."""
    other = rng.choice(sorted(file for file in folder.rglob("*") if file.is_file()))
    content = other.read_bytes()
    path.write_bytes(content)


def remove_folder(path: Path, folder: Path, rng: random.Random) -> None:
    parent = path.parent
    if parent == folder:
        path.unlink()
    else:
        shutil.rmtree(parent)


def value(path: Path, folder: Path, rng: random.Random) -> None:
    """One value of a JSON file, of each line of one, or of the header of safetensors: of another type, huge, nested,
    absent, or under another name. Other files lose a piece."""
    content = path.read_bytes()
    try:
        if path.suffix == ".safetensors":
            size = struct.unpack("<Q", content[:8])[0]
            header = changed_header(json.loads(content[8 : 8 + size]), rng)
            path.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + size :])
        elif path.suffix == ".jsonl":
            lines = content.decode().splitlines()
            at = rng.randrange(len(lines))
            lines[at] = json.dumps(changed(json.loads(lines[at]), rng))
            path.write_text("\n".join(lines) + "\n")
        else:
            path.write_text(json.dumps(changed(json.loads(content), rng)))
    except (ValueError, IndexError, struct.error):
        truncate(path, folder, rng)


def changed_header(header: dict, rng: random.Random) -> bytes:
    """The header of safetensors; half of the time inside the JSON that its metadata holds."""
    metadata = header.get("__metadata__", {})
    inside = [name for name, text in metadata.items() if text.startswith("{")]
    if inside and rng.random() < 0.8:
        name = rng.choice(inside)
        metadata[name] = json.dumps(changed(json.loads(metadata[name]), rng))
        return json.dumps(header).encode()
    return json.dumps(changed(header, rng)).encode()


def changed(tree: Any, rng: random.Random) -> Any:
    """A JSON value with one place in it changed."""
    places = [(tree, key) for key in _keys(tree)]
    for holder, key in places:
        places += [(holder[key], inner) for inner in _keys(holder[key])]
    if not places:
        return rng.choice(VALUES)
    holder, key = rng.choice(places)
    how = rng.random()
    if how < 0.7:
        holder[key] = rng.choice(VALUES)
    elif how < 0.8 and isinstance(holder, dict):
        holder["of_the_future" if rng.random() < 0.5 else "format"] = rng.choice((2, {"a": 1}, "x"))
    elif how < 0.9 and isinstance(holder, dict):
        holder[f"{key}_"] = holder.pop(key)
    else:
        del holder[key]
    return tree


def _keys(tree: Any) -> list:
    return list(tree) if isinstance(tree, dict) else list(range(len(tree))) if isinstance(tree, list) else []


MUTATIONS = [value] * 8 + [truncate, truncate, flip, flip, flip, overwrite, insert, replace]
MUTATIONS += [remove, directory, link, swap, remove_folder]
