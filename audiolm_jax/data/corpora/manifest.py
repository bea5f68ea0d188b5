"""Lists of recordings in JSON, one object a line: manifest.jsonl, and the metadata.jsonl of Hugging Face's audiofolder.

JSON is UTF-8 (RFC 8259): another encoding is refused. Each line that cannot be used is named.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audiolm_jax.data.corpora import SPLIT_NAMES, columns, usable_split
from audiolm_jax.data.corpora.cut import Part
from audiolm_jax.errors import InputError


@dataclass(frozen=True)
class Record:
    """A line of a list. `path` names the recording as the list does; `reason`: why it is rejected, "" if it is not."""

    path: str
    text: str | bytes | None
    where: str  # "line 3"
    key: str = ""
    speaker: str = ""
    split: str = ""
    words: tuple[tuple[str, float, float], ...] = ()
    part: Part | None = None
    reason: str = ""
    hint: str = ""  # said of a text that is missing


def read(path: Path) -> list[Record]:
    """The lines of a list in JSON. Raises InputError naming the first one that cannot be used."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8") from error
    return [
        parse(line, f"{path} line {number}", f"line {number}") for number, line in enumerate(lines, 1) if line.strip()
    ]


def parse(line: str, where: str, short: str) -> Record:
    """One line; `where` names it in sentences, `short` in keys."""
    example = "each line is one object with path and text"
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits, and nesting as deep
        reason = getattr(error, "msg", None) or (
            "it is nested too deep" if isinstance(error, RecursionError) else error
        )
        raise InputError(f"{where} is not JSON ({reason}); {example}") from error
    if not isinstance(record, dict):
        raise InputError(f"{where} is not a JSON object; {example}")
    names = columns.understood(record, where)
    record.pop("", None)  # is what `names` has for a column that is not there
    path = record.get(names.path)
    if not isinstance(path, str) or not path:
        raise InputError(f"{where} has no path; {example}")
    text = record.get(names.text)
    for name, value in (("key", record.get("key")), (names.text, text), ("split", record.get("split"))):
        if value is not None and not isinstance(value, str):
            raise InputError(f"{where} has {name} = {str(value)[:40]}; it must be a string")
    speaker = record.get(names.speaker)
    if isinstance(speaker, int) and not isinstance(speaker, bool):
        speaker = str(speaker)
    if speaker is not None and not isinstance(speaker, str):
        raise InputError(f"{where} has {names.speaker} = {str(speaker)[:40]}; it must be a string")
    split = record.get("split") or ""
    if split and not usable_split(split):
        raise InputError(f"{where} has split = {split[:80]!r}; {SPLIT_NAMES}")
    words = record.get("words") or []
    if not isinstance(words, list) or not all(map(_is_timed_word, words)):
        raise InputError(f"{where} has words that are not [[word, start, end], ...] with times in seconds")
    return Record(
        path,
        text,
        short,
        record.get(names.key) or "",
        speaker or "",
        split,
        tuple((word, float(start), float(end)) for word, start, end in words),
        columns.part({name: value for name, value in record.items() if name != "words"}, where),
    )


def _is_timed_word(word: Any) -> bool:
    if not (isinstance(word, list) and len(word) == 3 and isinstance(word[0], str)):
        return False
    try:
        return all(isinstance(t, int | float) and not isinstance(t, bool) and math.isfinite(t) for t in word[1:])
    except OverflowError:  # an integer of hundreds of digits
        return False
