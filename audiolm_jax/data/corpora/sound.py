"""Sound files, whole or in part, as everything here hears them: the corpus, prompts, and `audiolm codec`.

Samples are mixed to the channels that are asked for, then resampled. A recording gives the same samples whether it is
read at once or piece by piece (soxr gives the same for pieces of any size).
"""

import contextlib
import functools
import io
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from audiolm_jax.data.corpora import Reject, cut
from audiolm_jax.errors import OPEN_FILES

if TYPE_CHECKING:
    import soundfile

# What libsndfile reads, but for raw samples and tables of numbers (.raw, .mat, .htk).
SUFFIXES = tuple(
    f".{name}"
    for name in """wav wave bwf rf64 w64 flac ogg oga opus mp3 mp2 mpga aiff aif aifc au snd caf voc sph nist wve avr
    svx 8svx iff paf pvf ircam sf sds xi""".split()
)
# Recordings that it does not read.
OTHER_SUFFIXES = tuple(
    f".{name}"
    for name in """m4a m4b m4p mp4 aac wma webm weba mka 3gp 3ga amr awb alac ape wv tta tak shn mpc ac3 eac3 dts dsf
    dff dss ds2 ra rm qcp spx gsm raw pcm vox sd2 act ofr""".split()
)
PIECE_SECONDS = 10.0  # what is read at once

_OVERSHOOT = 2.0  # decoders of lossy formats pass 1.0 a little; integers stored as floats pass it by far
_LOST = 0.01  # seconds that a header may promise too much
_SEEKS_NEARBY = ("MP3", "OGG")  # formats in which libsndfile may begin at another sample than it was asked for
_KEPT = 4  # times the length of a part
_MOST_AT_ONCE = 2**22  # samples, whatever rate a damaged header claims
_UNKNOWN = 2**62  # more samples than any recording has: their number is not known


@contextlib.contextmanager
def opened(source: str | Path | bytes) -> Iterator["soundfile.SoundFile"]:
    """An open recording: a file, or its content. Raises Reject if there is none, or if it is damaged or cannot be read
    within the block."""
    import soundfile

    try:
        with _stream(source) as stream:
            file = _Streamed(stream)
            with soundfile.SoundFile(file) as sound:
                _check_promise(sound, file.head)
                yield sound
    except OSError as error:
        if error.errno in OPEN_FILES:  # of this process, not of the recording
            raise
        raise Reject(f"cannot be opened: {error.strerror or error}") from error
    except soundfile.SoundFileError as error:
        detail = getattr(error, "error_string", str(error)).strip(" .")
        if detail.startswith("File does not exist"):  # what libsndfile says of noise it took for mp3
            detail = "Format not recognised"
        raise Reject(f"not readable as audio: {detail or 'damaged or cut off'}") from error


def _stream(source: str | Path | bytes) -> BinaryIO:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    file = Path(source)
    if not file.exists():
        raise Reject("the file does not exist")
    if not file.is_file():
        raise Reject("it is no file")
    if file.stat().st_size == 0:
        raise Reject("the file is empty")
    return file.open("rb")


class _Streamed:
    """A file as libsndfile reads it. A WAV file whose data have the size 0, as programs leave it that write to a pipe
    or are stopped, gets the size 8 of all, with which libsndfile takes what is there for the data."""

    def __init__(self, stream: BinaryIO):
        self._stream, self.tell = stream, stream.tell
        self.head = stream.read(65536)
        stream.seek(0)
        self._patched = _unclosed(self.head, stream)

    def seek(self, offset: int, whence: int = 0) -> int:
        """Where a damaged header leads before the beginning, nothing moves, and libsndfile notices."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.seek(offset, whence)
        return self._stream.tell()

    def read(self, size: int = -1) -> bytes:
        position = self._stream.tell()
        data = self._stream.read(size)
        if self._patched and position < 8 and data:
            eight = b"RIFF\x08\x00\x00\x00"[position : position + len(data)]
            data = eight + data[len(eight) :]
        return data


def _unclosed(head: bytes, stream: BinaryIO) -> bool:
    """Whether a WAV file that begins like this says that it has no data although some follow."""
    size = stream.seek(0, 2)
    stream.seek(0)
    if head[:4] != b"RIFF" or head[8:12] != b"WAVE":
        return False
    place = 12
    while place + 8 <= len(head):
        length = int.from_bytes(head[place + 4 : place + 8], "little")
        if head[place : place + 4] == b"data":
            after = head[place + 8 : place + 16]
            follows = int.from_bytes(after[4:], "little") + place + 16 <= size and after[:4].isalnum()
            return length == 0 and len(after) > 1 and not follows
        place += 8 + length + length % 2
    return False


def _check_promise(sound: "soundfile.SoundFile", head: bytes) -> None:
    # libsndfile reads a truncated file without an error, and its text would not fit.
    said = sound.extra_info
    pattern = r"^\s*(?:data|SSND|BODY|Data Size|Data length|riff)\s*:?\s*(\d+) \(?should be (\d+)\)?"
    for promised, held in re.findall(pattern, said, re.MULTILINE):
        promised, held = int(promised), int(held)
        lost = sound.frames * (promised - held) / max(held, 1) / sound.samplerate
        if held < promised and lost > _LOST and not _is_placeholder(promised):
            raise Reject(f"cut off: its header promises {promised} bytes of audio, the file holds {held}")
    counted = re.search(r"Calculated frame count \d+ does not match value from 'ds64' chunk of (\d+)", said)
    if sound.format == "NIST":
        counted = re.search(r"^sample_count -i (\d+)", head[:1024].decode("latin-1"), re.MULTILINE)
    if counted and sound.frames + _LOST * sound.samplerate < int(counted[1]) < _UNKNOWN:
        raise Reject(f"cut off: its header promises {counted[1]} samples, the file holds {sound.frames}")
    if re.search("Ogg: Junk after the last page|File ended unexpectedly|File seems to be truncated", said):
        raise Reject("cut off: the file ends before its audio does")


def _is_placeholder(size: int) -> bool:
    """Whether a program that could not know the size wrote it: just below 2 or 4 gigabytes, or sox's 0x7F000000."""
    return any(limit - 65536 <= size <= limit for limit in (2**31, 2**32)) or 0 <= size - 0x7F000000 <= 64


def length(sound: "soundfile.SoundFile") -> int | None:
    """Samples of one channel, None if the format does not say."""
    return sound.frames if 0 < sound.frames < _UNKNOWN else None


def raw(sound: "soundfile.SoundFile", seconds: float = PIECE_SECONDS) -> Iterator[np.ndarray]:
    """All samples of an open recording, float32 [samples, channels], in pieces.

    Raises Reject if they are not finite, or if the file ends too early.
    """
    size, count = max(1, min(round(seconds * sound.samplerate), _MOST_AT_ONCE)), 0
    while True:
        piece_NC = sound.read(size, dtype="float32", always_2d=True)
        if not np.isfinite(piece_NC).all():
            raise Reject("holds NaN or Inf")
        count += len(piece_NC)
        if len(piece_NC):
            yield piece_NC
        if len(piece_NC) < size:
            break
    if count < 0.9 * (length(sound) or 0):
        raise Reject("cut off: the file ends before its audio does")


def whole(sound: "soundfile.SoundFile") -> np.ndarray:
    """`raw` at once."""
    found = list(raw(sound))
    return np.concatenate(found) if found else np.zeros((0, sound.channels), np.float32)


def some(source: str | Path | bytes, part: cut.Part) -> tuple[np.ndarray, int]:
    """(the samples of a part of a recording, float32 [samples, channels]; its sample rate in Hz).

    Raises Reject if it does not lie in the recording, or the recording cannot be read.
    """
    with opened(source) as sound:
        rate, frames = sound.samplerate, length(sound)
        if sound.seekable() and sound.format not in _SEEKS_NEARBY and frames:

            def read(start: int, stop: int) -> np.ndarray:
                sound.seek(start)
                return sound.read(stop - start, dtype="float32", always_2d=True)

            return cut.borders(part, rate, *part.inside(rate, frames), read), rate
        if frames is None or isinstance(source, bytes):
            all_NC = whole(sound)
            first, last = part.inside(rate, len(all_NC))
            return cut.borders(part, rate, first, last, lambda start, stop: all_NC[start:stop]), rate
    forward = _forward(str(source), Path(source).stat().st_mtime_ns)
    return cut.borders(part, rate, *part.inside(rate, frames), forward.read), rate


class _Forward:
    """A recording read from its beginning on, as its parts are asked for one after the other. The last samples are
    kept, for parts that overlap or that threads ask for in another order."""

    def __init__(self, path: str):
        self._path, self._lock = path, threading.Lock()
        self._restart()

    def _restart(self) -> None:
        self._coming, self._kept, self._first, self._stop = self._opened(), [], 0, 0

    def _opened(self) -> Iterator[np.ndarray]:
        with opened(self._path) as sound:
            yield from raw(sound)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Samples [stop - start, channels], fewer at the end of the recording."""
        with self._lock:
            if start < self._first:
                self._restart()
            try:
                while self._stop < stop and (piece_NC := next(self._coming, None)) is not None:
                    self._kept.append(piece_NC)
                    self._stop += len(piece_NC)
                    self._forget(min(start, self._stop - _KEPT * (stop - start)))
            except Reject:
                self._restart()
                raise
            found_NC = np.concatenate(self._kept or [np.zeros((0, 1), np.float32)])
            return found_NC[start - self._first : stop - self._first].copy()

    def _forget(self, before: int) -> None:
        while self._first + len(self._kept[0]) <= before:
            self._first += len(self._kept.pop(0))


@functools.lru_cache(maxsize=4)
def _forward(path: str, changed: int) -> _Forward:
    return _Forward(path)


def mixed(samples_NC: np.ndarray, channels: int) -> np.ndarray:
    """Samples [samples, 1 or 2] of a recording [samples, any number of channels].

    Raises Reject for two of more than two.
    """
    if channels == 1:
        return samples_NC.mean(axis=1, keepdims=True)
    if samples_NC.shape[1] > channels:
        raise Reject(f"has {samples_NC.shape[1]} channels where 1 or {channels} are needed; mix it down")
    return np.repeat(samples_NC, channels, axis=1) if samples_NC.shape[1] == 1 else samples_NC


def in_range(samples_NC: np.ndarray) -> np.ndarray:
    """The samples clipped to [-1, 1]. Raises Reject for those that cannot be meant so."""
    peak = float(np.abs(samples_NC).max(initial=0.0))
    if peak > _OVERSHOOT:
        raise Reject(f"samples reach {peak:.4g}, floating-point audio must lie in [-1, 1]: wrong encoding")
    return np.clip(samples_NC, -1, 1)


class Delivery:
    """A recording on its way to a codec, piece by piece: mixed, in range, resampled."""

    def __init__(self, rate: int, to_rate: int, channels: int):
        import soxr

        self._channels, self._stream = channels, None
        if rate != to_rate:
            self._stream = soxr.ResampleStream(rate, to_rate, channels, dtype="float32", quality="HQ")

    def __call__(self, samples_NC: np.ndarray, last: bool) -> np.ndarray:
        """Some more samples [samples, channels] -> float32 [samples, `channels`] that are ready, maybe none.

        Raises Reject for samples that cannot be meant to lie in [-1, 1].
        """
        samples_NC = in_range(mixed(samples_NC, self._channels)).astype(np.float32)
        if self._stream is None:
            return samples_NC
        out: Any = self._stream.resample_chunk(samples_NC, last=last)
        return np.clip(np.asarray(out, np.float32).reshape(-1, self._channels), -1, 1)
