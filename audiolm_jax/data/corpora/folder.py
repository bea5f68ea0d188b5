"""A folder of recordings: wav, flac, ogg, opus or mp3.

The text of a recording comes from the first of these that is there:

1. a JSONL manifest, when `corpus.path` is one or the folder holds `manifest.jsonl`. Only what it lists is used. A
   line has `path` (or `audio_filepath`; relative to the manifest) and `text`, and may have `key`, `speaker`, `split`
   and `words` ([[word, start, end], ...] in seconds);
2. `metadata.csv` in the layout of LJSpeech: `id|text` or `id|text|normalised text`, recordings in `wavs/` or beside;
3. a file of the same name ending in `.txt`.

Without a manifest the speaker is the name of the recording's folder (none for the top folder and for `wavs`), and
the split comes from a hash of the recording's path.
"""

import collections
import functools
import json
import re
from pathlib import Path

import numpy as np

from audiolm_jax.data.corpora import CorpusConfig, Reject, Utterance, checks
from audiolm_jax.errors import InputError

SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3")
_PLAIN_FOLDERS = ("wavs", "wav", "audio", "clips")  # hold recordings, do not name a speaker


def utterances(config: CorpusConfig, directory: Path, progress: bool = True) -> list[Utterance]:
    """Lists the recordings of `config.path`, or of `directory` where that is empty; see `corpora.utterances`.

    Raises:
      InputError: there is no such folder, no recording in it, or a line of the manifest cannot be used.
    """
    root = Path(config.path or directory).expanduser()
    if not root.exists():
        raise InputError(f"corpus.path = {str(root)!r} does not exist; give a folder of recordings or a JSONL manifest")
    try:
        manifest = root if root.is_file() else root / "manifest.jsonl"
        if root.is_file() and root.suffix not in (".jsonl", ".json"):
            raise InputError(
                f"corpus.path = {str(root)!r} is a file; give a folder of recordings or a manifest ending in .jsonl"
            )
        recordings = _from_manifest(manifest, config) if manifest.exists() else _from_files(root, config)
    except OSError as error:
        raise InputError(f"cannot read the corpus in {root}: {error.strerror}") from error
    if not recordings:
        raise InputError(f"no recordings in {root}: expected files ending in {', '.join(SUFFIXES)} or a manifest")
    return recordings


def load(path: str, config: CorpusConfig, reason: str = "") -> tuple[np.ndarray, int]:
    """Reads one recording: (waveform float32 [samples], config.sample_rate).

    Args:
      reason: why this recording was rejected when the corpus was listed, "" if it was not.

    Raises:
      Reject: with the reason.
    """
    import soundfile

    if reason:
        raise Reject(reason)
    file = Path(path)
    try:
        if not file.exists():
            raise Reject("the file does not exist")
        if file.stat().st_size == 0:
            raise Reject("the file is empty")
        with file.open("rb") as stream, soundfile.SoundFile(stream) as sound:
            if sound.frames > 0:  # before reading: a file of hours need not be decoded to be refused
                checks.check_duration(sound.frames / sound.samplerate, config)
            samples = sound.read(dtype="float32", always_2d=True)
            _check_whole(sound, len(samples))
            return checks.prepare(samples, sound.samplerate, config)
    except OSError as error:
        raise Reject(f"cannot be opened: {error.strerror}") from error
    except soundfile.SoundFileError as error:
        detail = getattr(error, "error_string", str(error)).strip(" .")
        if detail.startswith("File does not exist"):  # what libsndfile says of noise it took for mp3
            detail = "Format not recognised"
        raise Reject(f"not readable as audio: {detail or 'damaged or cut off'}") from error


def _check_whole(sound, samples: int) -> None:
    # libsndfile reads a truncated file without an error, and its text would not fit. Programs that write to a pipe
    # leave sizes of 0 and -1.
    promised = re.search(r"^data\s*: (\d+) \(should be (\d+)\)", sound.extra_info, re.MULTILINE)
    if promised and 0 < int(promised[2]) < int(promised[1]) < 2**32 - 1:
        raise Reject(f"cut off: its header promises {promised[1]} bytes of audio, the file holds {promised[2]}")
    torn = ("Ogg: Junk after the last page", "File ended unexpectedly")
    if any(sign in sound.extra_info for sign in torn) or samples < 0.9 * sound.frames:
        raise Reject("cut off: the file ends before its audio does")


def _utterance(
    config: CorpusConfig, path: Path, source: str, text: str | bytes | None, reason: str = "", **fields
) -> Utterance:
    try:
        text = checks.clean_text(text, config.require_text)
    except Reject as reject:
        text, reason = "", reason or str(reject)
    loader = functools.partial(load, str(path), config, reason)
    return Utterance(text=text, load=loader, source=source, **fields)


def _from_files(root: Path, config: CorpusConfig) -> list[Utterance]:
    files = sorted(
        path
        for path in root.rglob("*")
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and not path.is_dir()
    )
    metadata = _read_metadata(root / "metadata.csv")
    listed = {file.stem for file in files}
    for name in sorted(set(metadata) - listed):
        files.append(root / "wavs" / f"{name}.wav")  # does not exist: rejected when it is loaded

    relative = [path.relative_to(root) for path in files]
    keys = [path.with_suffix("").as_posix() for path in relative]
    count = collections.Counter(keys)  # a.wav and a.mp3 side by side keep their suffix
    keys = [path.as_posix() if count[key] > 1 else key for key, path in zip(keys, relative, strict=True)]
    names = checks.splits(keys, config.valid_fraction, config.test_fraction)
    recordings = []
    for path, inside, key, split in zip(files, relative, keys, names, strict=True):
        text = metadata[path.stem] if path.stem in metadata else _read_text(path.with_suffix(".txt"))
        folder = inside.parent.name
        speaker = "" if folder in _PLAIN_FOLDERS else folder
        recordings.append(
            _utterance(config, path, inside.as_posix(), text, key=key, split=split, speaker=speaker, words=())
        )
    return recordings


def _read_text(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _read_metadata(path: Path) -> dict[str, bytes | None]:
    # Kept as bytes: one line in another encoding must not take the other lines with it.
    texts: dict[str, bytes | None] = {}
    if not path.is_file():
        return texts
    for line in path.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines():
        columns = line.split(b"|")
        name = columns[0].decode("utf-8", errors="replace").strip()
        if name:
            filled = [column for column in columns[1:] if column.strip()]
            texts[name] = filled[-1] if filled else (b"" if len(columns) > 1 else None)
    return texts


def _from_manifest(manifest: Path, config: CorpusConfig) -> list[Utterance]:
    try:
        lines = manifest.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{manifest} is not UTF-8 (byte {error.start}); save it as UTF-8") from error
    records = [
        _parse(f"{manifest} line {number}", line) | {"where": f"line {number}"}
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    keys = [record["key"] for record in records]
    hashed = checks.splits(keys, config.valid_fraction, config.test_fraction)
    recordings, seen = [], set()
    for record, by_hash in zip(records, hashed, strict=True):
        key, source, reason = record["key"], record["path"], ""
        if key in seen:
            reason = f"the manifest holds the key {key!r} more than once"
            key = source = f"{source} ({record['where']})"
        seen.add(key)
        fields = {
            "key": key,
            "split": record.get("split") or by_hash,
            "speaker": record.get("speaker") or "",
            "words": tuple((word, float(start), float(end)) for word, start, end in record.get("words") or ()),
        }
        path = manifest.parent / record["path"]
        recordings.append(_utterance(config, path, source, record.get("text"), reason, **fields))
    return recordings


def _parse(where: str, line: str) -> dict:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where} is not JSON ({error.msg}); each line is one object with path and text") from error
    if not isinstance(record, dict):
        raise InputError(f"{where} is not a JSON object; each line is one object with path and text")
    path = record.get("path", record.get("audio_filepath"))
    if not isinstance(path, str) or not path:
        raise InputError(f"{where} has no path; each line is one object with path and text")
    for key in ("key", "text", "speaker", "split"):
        if record.get(key) is not None and not isinstance(record[key], str):
            raise InputError(f"{where} has {key} = {record[key]!r}; it must be a string")
    if record.get("split") and not re.fullmatch(r"\w+", record["split"]):
        raise InputError(f"{where} has split = {record['split']!r}; use letters, digits and _ only")
    words = record.get("words") or []
    if not isinstance(words, list) or not all(_is_timed_word(word) for word in words):
        raise InputError(f"{where} has words that are not [[word, start, end], ...] with times in seconds")
    return record | {"path": path, "key": record.get("key") or Path(path).with_suffix("").as_posix()}


def _is_timed_word(word) -> bool:
    return (
        isinstance(word, list)
        and len(word) == 3
        and isinstance(word[0], str)
        and all(isinstance(time, int | float) and not isinstance(time, bool) for time in word[1:])
    )
