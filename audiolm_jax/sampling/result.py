"""What `generate` returns: codes and audio, which a notebook shows as a player and `save` writes to a file."""

import base64
import dataclasses
import html
import io
from pathlib import Path

import numpy as np

from audiolm_jax import files
from audiolm_jax.errors import InputError


@dataclasses.dataclass(frozen=True, repr=False)
class Result:
    """One finished row. Its first frames are the prompt, which `waveform` includes only with `include_prompt`."""

    codes_TQ: np.ndarray  # int32, prompt included
    prompt_frames: int
    waveform: np.ndarray  # float32 [samples], [2, samples] from a stereo codec
    sample_rate: int  # Hz
    ended: bool  # the model predicted the end; False: cut at the limit or at the requested length
    passes: int  # sequential passes of the network for this row, the prompt's included
    seconds: float  # wall time of the batch, codec included

    def __repr__(self) -> str:
        return f"Result({self._line()})"

    def _repr_html_(self) -> str:
        """A player with the audio in it, and a line of text."""
        sound = base64.b64encode(encoded(self.waveform, self.sample_rate, ".wav")).decode()
        return (
            f'<div><audio controls preload="metadata" src="data:audio/wav;base64,{sound}"></audio>'
            f"<div>{self._line()}</div></div>"
        )

    def _line(self) -> str:
        frames, codebooks = self.codes_TQ.shape
        end = "ended by the model" if self.ended else "cut at the length"
        return (
            f"{self.waveform.shape[-1] / self.sample_rate:.2f} s at {self.sample_rate} Hz, {frames} frames of "
            f"{codebooks} codes ({self.prompt_frames} of the prompt), {end}"
        )

    def save(self, path: str | Path) -> Path:
        """Writes the waveform, whole or not at all; the suffix names the format: .wav and .flac (16 bits), and the
        others that libsndfile writes (.ogg, .mp3).

        Returns the path. Raises InputError for another suffix, a rate that the format lacks, a folder that is missing
        or cannot be written, and a full disk.
        """
        path = Path(path)
        content = encoded(self.waveform, self.sample_rate, path.suffix)
        with files.writing(path), files.replacing(path) as temporary:
            temporary.write_bytes(content)
        return path


def encoded(waveform: np.ndarray, sample_rate: int, suffix: str) -> bytes:
    """The audio file of a waveform [samples] or [channels, samples]. Raises InputError for a suffix of no format."""
    import soundfile

    kind = suffix.removeprefix(".").upper()
    known = soundfile.available_formats()
    if kind not in known or kind == "RAW":
        names = ", ".join(f".{name.lower()}" for name in ("WAV", "FLAC", "OGG", "MP3") if name in known)
        raise InputError(f"a name that ends in {suffix or 'no suffix'!r} was given; audio is written as {names}")
    buffer = io.BytesIO()
    subtype = "PCM_16" if soundfile.check_format(kind, "PCM_16") else None
    try:
        soundfile.write(buffer, waveform.T, sample_rate, format=kind, subtype=subtype)
    except (soundfile.SoundFileError, ValueError) as error:
        raise InputError(f"a {suffix} of {sample_rate} Hz cannot be written ({' '.join(str(error).split())})") from None
    return buffer.getvalue()


def table(about: dict[str, str], title: str) -> str:
    """Names and values as a table of HTML."""
    rows = (f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>" for name, value in about.items())
    return f"<table><caption>{html.escape(title)}</caption>{''.join(rows)}</table>"
