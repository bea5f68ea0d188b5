"""Options of `generate` -> the rows of a batch: one value for all texts, or a list with one for each.

An option is a field of `Row`, under the name that it has for many rows (`COLUMNS`), or a field of `SamplingConfig`. A
list, or an array with an axis, has one value for each text. A tuple of a sampling option is one value: a number per
codebook.
"""

import dataclasses
import difflib
import math
import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np

from audiolm_jax.audio import resample
from audiolm_jax.errors import InputError
from audiolm_jax.sampling import SamplingConfig


@dataclasses.dataclass(frozen=True)
class Row:
    """The options of one row.

    text: what to say, or a description of the music. audio: to continue, in the same voice; see `Generator.generate`.
    prompt_text: transcript of `audio`, which the text continues. melody: to follow, a waveform at the codec's rate or
    (waveform, Hz). turns: what was said before in a dialogue, (speaker, text, audio) each. language, instruction (how
    to speak), text_first (all of the text before the audio, not beside it): of families that take them, None: what the
    family does without. frames or seconds: length with the prompt; without them the model predicts the end. sampling:
    None: that of the Generator.

    Raises InputError for a value of another type.
    """

    text: str
    audio: Any = None
    melody: Any = None
    prompt_text: str = ""
    speaker: str = ""
    turns: Sequence[tuple[str, str, Any]] = ()
    language: str | None = None
    instruction: str | None = None
    text_first: bool | None = None
    frames: int | None = None
    seconds: float | None = None
    sampling: SamplingConfig | None = None
    seed: int | None = None  # None: sampling.seed

    def __post_init__(self) -> None:
        given = [name for name in ("language", "instruction") if getattr(self, name) is not None]
        if not isinstance(self.text_first, bool | None):
            raise InputError(f"text_first is {_shown(self.text_first)}; it must be True or False")
        for name in ("text", "prompt_text", "speaker", *given):
            if not isinstance(getattr(self, name), str):
                raise InputError(f"{name} is {_shown(getattr(self, name))}; it must be a string")
        for turn in self.turns:
            if len(turn) != 3 or not isinstance(turn[0], str) or not isinstance(turn[1], str):
                raise InputError(f"a turn is {_shown(turn)}; it must be (speaker, text, audio), the first two strings")
        for name, kind in (("frames", numbers.Integral), ("seconds", numbers.Real), ("seed", numbers.Integral)):
            object.__setattr__(self, name, _number(name, getattr(self, name), kind))
        if not isinstance(self.sampling, SamplingConfig | None):
            raise InputError(f"sampling is {_shown(self.sampling)}; it must be a SamplingConfig")


COLUMNS = {  # options for many rows -> fields of a Row
    "prompts": "audio",
    "melodies": "melody",
    "prompt_texts": "prompt_text",
    "speakers": "speaker",
    "turns": "turns",
    "languages": "language",
    "instructions": "instruction",
    "text_first": "text_first",
    "frames": "frames",
    "seconds": "seconds",
    "sampling": "sampling",
    "seeds": "seed",
}
DRAWS = tuple(field.name for field in dataclasses.fields(SamplingConfig))


def row(text: Any, options: dict[str, Any], default: SamplingConfig) -> Row:
    """One row, its options named as the fields of Row and of SamplingConfig."""
    fields = [field.name for field in dataclasses.fields(Row) if field.name != "text"]
    draws = {name: value for name, value in options.items() if name in DRAWS and name not in fields}
    known = {name: value for name, value in options.items() if name not in draws}
    _refuse_unknown(known, fields)
    return Row(text, **_with_draws(known, draws, default))


def rows(texts: Any, options: dict[str, Any], default: SamplingConfig) -> list[Row]:
    """A row for each text. default: the sampling of rows that name none. Without `seeds` row b has sampling.seed + b.

    Raises InputError for no texts, an unknown option, values of another type, lists of unequal lengths.
    """
    texts = [texts] if isinstance(texts, str) else texts
    if isinstance(texts, bytes) or not hasattr(texts, "__len__"):
        raise InputError(f"texts are {_shown(texts)}; give a string, or a list of strings")
    texts = list(texts)
    if not texts:
        raise InputError("no text was given; at least one is needed (an empty one, with an audio prompt)")
    _refuse_unknown(options, COLUMNS)
    if options.get("seeds") is not None and options.get("seed") is not None:
        raise InputError("both seed and seeds were given; row b draws from seed + b, or from its own of seeds")
    columns = {name: _each(name, value, len(texts)) for name, value in options.items() if value is not None}
    found = []
    for b, text in enumerate(texts):
        values = {COLUMNS[name]: column[b] for name, column in columns.items() if name in COLUMNS}
        draws = {name: column[b] for name, column in columns.items() if name in DRAWS}
        values = _with_draws(values, draws, default)
        if values.get("seed") is None and isinstance(values.get("sampling"), SamplingConfig | None):
            values["seed"] = (values.get("sampling") or default).seed + b
        found.append(Row(text, **values))
    return found


def _refuse_unknown(options: dict[str, Any], known: Any) -> None:
    for name in options:
        if name not in known and name not in DRAWS:
            near = difflib.get_close_matches(name, [*known, *DRAWS], n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(dict.fromkeys([*known, *DRAWS]))}"
            raise InputError(f"there is no option {name}; {hint}")


def _each(name: str, value: Any, count: int) -> list[Any]:
    """An option as a list of one value for each text."""
    one = isinstance(value, str | bytes | SamplingConfig) or getattr(value, "shape", None) == ()
    one = one or not hasattr(value, "__len__")
    if one or (isinstance(value, tuple) and name in DRAWS):
        return [value] * count
    if len(value) != count:
        tuples = "; a tuple is one value, a number per codebook" if name in DRAWS else ""
        raise InputError(f"{len(value)} {name} were given for {count} texts; give one for each or for all{tuples}")
    return list(value)


def _with_draws(values: dict[str, Any], draws: dict[str, Any], default: SamplingConfig) -> dict[str, Any]:
    """The values of a row, its sampling changed by `draws`."""
    if not draws:
        return values
    sampling = values.get("sampling")
    if not isinstance(sampling, SamplingConfig | None):
        raise InputError(f"sampling is {_shown(sampling)}; it must be a SamplingConfig")
    draws = {name: _plain(value) for name, value in draws.items() if value is not None}
    return {**values, "sampling": dataclasses.replace(sampling or default, **draws)}


def _plain(value: Any) -> Any:
    """Scalars of numpy as Python's."""
    if isinstance(value, tuple | list):
        return tuple(map(_plain, value))
    return value.item() if isinstance(value, np.generic | np.ndarray) and np.ndim(value) == 0 else value


def _number(name: str, value: Any, kind: type) -> Any:
    """An int or a float of a number of any library. Raises InputError for anything else."""
    value = _plain(value)
    whole = kind is numbers.Integral
    fits = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if value is None or (fits and not whole):
        return value if value is None else float(value)
    if not fits or not math.isfinite(value) or value != int(value):
        raise InputError(f"{name} is {_shown(value)}; it must be {'an integer' if whole else 'a number'}")
    return int(value)


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{text if len(text) <= 40 else text[:37] + '...'} ({type(value).__name__})"


def is_codes(prompt: Any) -> bool:
    """Whether a prompt is a grid of integers, not a recording."""
    array = _array(prompt, strict=False)
    return not isinstance(prompt, tuple) and array.dtype.kind in "iu" and array.ndim == 2


def waveform(audio: Any, rate: int, channels: int) -> np.ndarray:
    """A prompt that is no codes, as the codec takes it: float32 [samples], [2, samples] of a stereo codec, at `rate`.

    audio: floats of that form already (or mono for a stereo codec), or (samples, Hz) as soundfile, scipy and torchaudio
    read recordings: floats or PCM integers, [samples], [samples, channels] or [channels, samples]; resampled and mixed.
    Raises InputError for anything else.
    """
    wanted = "[samples]" if channels == 1 else "[samples] or [2, samples]"
    if isinstance(audio, tuple | list) and len(audio) == 2 and hasattr(audio[0], "__len__") and np.size(audio[1]) == 1:
        return _recording(*audio, rate, channels)
    samples = _array(audio)
    if samples.ndim == 1 and channels == 2:
        samples = np.stack([samples, samples])
    if samples.ndim != channels or not np.issubdtype(samples.dtype, np.floating):
        raise InputError(
            f"a prompt is {samples.dtype} of shape {samples.shape}; a waveform is {wanted} of floats at {rate} Hz, or "
            "(samples, Hz), and codes are integers [frames, codebooks]"
        )
    return _in_range(samples)


def _recording(audio: Any, hertz: Any, rate: int, channels: int) -> np.ndarray:
    samples, hertz = _array(audio), _plain(hertz)
    if not isinstance(hertz, numbers.Real) or isinstance(hertz, bool) or not 0 < hertz < math.inf:
        raise InputError(f"a prompt is (samples, {_shown(hertz)}); its rate must be a number of Hz above 0")
    if samples.ndim == 2 and samples.shape[0] > 2 >= samples.shape[1]:
        samples = samples.T  # as soundfile and scipy read
    if samples.ndim not in (1, 2) or (samples.ndim == 2 and samples.shape[0] > 2) or not samples.size:
        raise InputError(
            f"a prompt has shape {samples.shape}; a recording is [samples], [samples, channels] or [channels, samples] "
            "of one or two channels"
        )
    if np.issubdtype(samples.dtype, np.integer):
        bits = np.iinfo(samples.dtype)
        if bits.bits > 32:
            raise InputError(f"a prompt is {samples.dtype}; integers of 8, 16 or 32 bits are PCM, others give floats")
        middle = 2 ** (bits.bits - 1)
        samples = (samples.astype(np.float64) - (middle if bits.min == 0 else 0)) / middle
    elif not np.issubdtype(samples.dtype, np.floating):
        raise InputError(f"a prompt is {samples.dtype} of shape {samples.shape}; samples are floats or PCM integers")
    samples = np.atleast_2d(_in_range(samples))
    if channels == 1:
        samples = samples.mean(axis=0, keepdims=True)
    elif len(samples) == 1:
        samples = np.repeat(samples, 2, axis=0)
    resampled = np.stack([resample(row_N.astype(np.float32), hertz, rate) for row_N in samples])
    return resampled[0] if channels == 1 else resampled


LOUDEST = 16.0  # float recordings pass 1 where they were clipped late; beyond this they are integers in disguise


def _in_range(samples: np.ndarray) -> np.ndarray:
    if not np.isfinite(samples).all():
        raise InputError("a prompt holds NaN or infinite samples")
    if samples.size and np.abs(samples).max() > LOUDEST:
        raise InputError(
            f"the samples of a prompt reach {np.abs(samples).max():g}; floats lie in [-1, 1]: divide 16-bit samples by "
            "32768, or give them as integers with their rate, (samples, Hz)"
        )
    return samples


def _array(audio: Any, strict: bool = True) -> np.ndarray:
    try:
        array = np.asarray(audio)
    except (ValueError, TypeError):  # of unequal lengths
        array = np.zeros((), object)
    if strict and array.dtype.kind not in "iuf":
        raise InputError(f"a prompt is {_shown(audio)}; it must be a waveform, (waveform, Hz) or codes")
    return array
