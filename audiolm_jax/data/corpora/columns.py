"""What lists of recordings call their columns: the keys of a JSON line, or the first line of a table.

Each name that has a meaning is honoured; one that speaks of a part of a recording and is not known is refused by name.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from audiolm_jax.data.corpora.cut import Part
from audiolm_jax.errors import InputError

# Several names of one thing, the first found counts.
PATHS = """path audio_filepath file_name filename file audio_file audio_path audio_filename file_path filepath wav
wav_path wav_file wav_filename audio clip recording fname""".split()
IDS = "id utt_id utterance_id name key".split()  # name a recording where there is no path
TEXTS = (  # preferred in this order, as the normalised text is in LJSpeech; two of one line contradict each other
    """normalized_text normalised_text text_normalized text_normalised normalized_transcription normalized_transcript
    normalized normalised""".split(),
    "text transcription transcript sentence".split(),
    "caption description".split(),
    "raw_text raw_transcription original_text".split(),
)
SPEAKERS = "speaker speaker_id speaker_name spk spk_id client_id".split()

_STARTS, _STOPS, _LENGTHS = ("start", "begin", "offset"), ("end", "stop"), ("duration", "dur", "length")
_UNITS = {"": 1.0, "s": 1.0, "sec": 1.0, "secs": 1.0, "second": 1.0, "seconds": 1.0, "time": 1.0}
_UNITS |= {"ms": 1e-3, "msec": 1e-3, "millis": 1e-3, "milliseconds": 1e-3}
_SAMPLES = ("sample", "samples", "frame", "frames")  # of the recording, which only its file tells in seconds
_FOREVER = 1e12  # more seconds or samples than any recording has
_OF_A_PART = {*_STARTS, *_STOPS, "onset", "segment", "segments", "channel"}


@dataclass(frozen=True)
class Columns:
    """Which column says what: `path`, `text`, `speaker`, ... are the names in the list, "" where there is none."""

    path: str
    text: str
    speaker: str
    key: str


def plain(name: str) -> str:
    """A name as it is compared: "File Name", "file-name" and "fileName" are file_name."""
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.strip().lstrip("\ufeff"))
    return re.sub(r"[\s\-.]+", "_", name).lower()


def understood(names: Iterable[str], where: str) -> Columns:
    """The columns of a list. Raises InputError for two columns with one meaning."""
    by_name = {plain(name): name for name in names if isinstance(name, str)}

    def first(wanted: Iterable[str]) -> str:
        return next((by_name[name] for name in wanted if name in by_name), "")

    text = ""
    for group in TEXTS:
        found = [by_name[name] for name in group if name in by_name]
        if len(found) > 1 and not text:
            raise InputError(
                f"{where} has the texts {' and '.join(found)}; keep one of them, or call the other raw_text"
            )
        text = text or (found[0] if found else "")
    path = first(PATHS) or first(IDS)
    key = by_name.get("key", "")
    return Columns(path, text, first(SPEAKERS), key if key != path else "")


def part(fields: Mapping[str, Any], where: str) -> Part | None:
    """The part of a recording that a line names, None for all of it.

    Seconds from the beginning, as numbers or their text: start, begin or offset; end or stop; duration. With _ms, _sec,
    _samples or _frames at the end of the name, in these units; num_samples, num_frames or length beside a start too.

    Raises InputError for values that are no such times, and for other names that speak of a part.
    """
    found: dict[str, tuple[str, float, str]] = {}
    for name, value in fields.items():
        words = plain(name).split("_") if isinstance(name, str) else []
        role, unit = _meaning(words)
        if value is None or value == "":
            continue
        if role is None:
            if _OF_A_PART & set(words) and not _is_harmless(words, value):
                raise InputError(
                    f"{where} has {name} = {str(value)[:40]}, which is not understood; a part of a recording is named "
                    "by start, end, offset and duration in seconds"
                )
            continue
        if role in found:
            raise InputError(f"{where} has both {found[role][0]} and {name}; keep one of them")
        found[role] = name, _number(value, name, where) * _UNITS.get(unit, 1.0), unit
    name, length, unit = found.get("length", ("", 0.0, ""))
    if "start" not in found and (unit in _SAMPLES or "length" in plain(name)):
        found.pop("length", None)  # alone they say how long something is, of features or letters too
    start = found["start"][1] if "start" in found else 0.0
    stop = found["stop"][1] if "stop" in found else start + length if "length" in found else None
    counted = {unit in _SAMPLES for _, value, unit in found.values() if value}
    if len(counted) > 1:
        raise InputError(f"{where} has {' and '.join(name for name, *_ in found.values())} in seconds and in samples")
    if stop is not None and stop <= start:
        raise InputError(f"{where} names a part from {start:g} to {stop:g}; it must end after it starts")
    return Part(start, stop, samples=True in counted) if start or stop is not None else None


def _meaning(words: list[str]) -> tuple[str | None, str]:
    """(start, stop, length or None; the unit) of a name in words."""
    if len(words) == 2 and words[0] in ("num", "n") and words[1] in _SAMPLES:
        return "length", words[1]
    if len(words) == 2 and words[0] in _SAMPLES:  # frame_offset
        words = words[::-1]
    unit = words[1] if len(words) == 2 else ""
    if len(words) <= 2 and (unit in _UNITS or unit in _SAMPLES):
        for role, names in (("start", _STARTS), ("stop", _STOPS), ("length", _LENGTHS)):
            if words[0] in names:
                return role, unit
    return None, ""


def _is_harmless(words: list[str], value: Any) -> bool:
    """Whether a value says nothing of a part: a name of one, a number of channels, the first channel."""
    if "channels" in words or words[-1] in ("id", "index", "number"):
        return True
    if isinstance(value, str):
        return not re.fullmatch(r"\s*[\d.]+\s*", value)
    return isinstance(value, bool) or ("channel" in words and value == 0)


def _number(value: Any, name: str, where: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not 0 <= number < _FOREVER:  # false of NaN too
        raise InputError(f"{where} has {name} = {str(value)[:40]!r}; it must be a number of at least 0")
    return number
