"""results.json: what a comparison measured. Every key is a field of `Results`; an unknown or missing key is an error.

Units: bits are base-2, "per second" means per second of audio, rates are fractions (0.05, not 5), sizes are bytes.
Wall-clock times are only below the keys `TIMES`, so two runs compare equal after `strip_times`. A field with a default
is a key that may be left out.

Intervals are 95 %, over utterances and, where there are several, seeds (evaluation/intervals.py says what they cover).
They can be computed again from `held_out` and the numbers of every seed:

    intervals.ratio([seed["utterance_bits"] for seed in strategy["seeds"]], held_out["utterance_seconds"])
    intervals.ratio([seed["sentence_errors"] for seed in strategy["seeds"]], held_out["sentence_characters"])

Version 2 has one entry of `strategies` for each strategy of each size, the mean over its seeds; version 1 had one run.
"""

import contextlib
import dataclasses
import math
import types
import typing
from pathlib import Path
from typing import Any

from audiolm_jax import files
from audiolm_jax.errors import InputError

VERSION = 2
EQUAL = {"flops": "parameters and training FLOPs", "tokens": "parameters and frames of audio seen"}
TIMES = frozenset({"speed", "training_seconds", "created", "hardware"})
frozen = dataclasses.dataclass(frozen=True, kw_only=True)


@frozen
class ErrorRate:
    value: float  # character error rate, all utterances together
    low: float  # its interval
    high: float
    utterances: int
    second_opinion: float | None  # CER by pocketsphinx; null where its grammar does not fit


@frozen
class Spread:
    """Over seeds."""

    sd: float | None  # of the sample; null for one seed
    min: float
    max: float


@frozen
class Spreads:
    bits_per_second: Spread
    cer: Spread


@frozen
class Sample:
    sentence: int  # index into `sentences`
    file: str  # audio, relative to results.json
    transcript: str  # what the recogniser heard
    cer: float
    seconds: float  # length of the audio


@frozen
class Ceiling:
    cer: ErrorRate
    samples: list[Sample]


@frozen
class Ceilings:
    real: Ceiling
    codec: Ceiling


@frozen
class SeedSpeed:
    rtf: float
    first_audio_seconds: float


@frozen
class Machine:
    processor: str
    devices: str


@frozen
class Seed:
    seed: int  # of initial weights, data order and training noise
    run: str  # the folder below runs/
    bits_per_second: float
    cer: float
    training_seconds: float
    training_frames: int  # frames of audio really shown in training
    frames: int  # of the utterance whose passes are counted
    passes: int  # sequential passes of the network for it
    speed: SeedSpeed
    hardware: Machine  # that trained it
    utterance_bits: list[float]  # code bits of every held-out utterance, in the order of held_out.utterance_seconds
    sentence_errors: list[int]  # wrong characters of every sentence, in the order of held_out.sentence_characters


@frozen
class Rate:
    bits_per_second: float
    low: float
    high: float
    utterances: int


@frozen
class Cost:
    frames: int  # of the utterance the passes are counted for
    predicted_passes: float  # sequential passes of the network for that utterance
    measured_passes: float
    lookahead_frames: float  # frames begun before the first one is complete; all frames if not causal
    first_audio_passes: float  # sequential passes before the first frame is complete
    positions: float = 0.0
    flops: float = 0.0
    kv_bytes: float = 0.0


@frozen
class Speed:
    rtf: float  # seconds of work for one second of audio, one utterance at a time
    generation_seconds: float  # the sentences spoken with a clock, all together
    generation_predicted_seconds: float  # roofline of the network's passes on the rates of this machine
    first_audio_seconds: float  # measured
    first_audio_predicted_seconds: float | None  # first_audio_passes times the measured time of a pass
    training_steps_per_second: float = 0.0


@frozen
class Strategy:
    """From `cost` on, of the first seed."""

    name: str  # of this entry: the strategy, or strategy-size where there are several sizes
    strategy: str
    size: str  # a name in config.compare.sizes; "" where there are none
    parameters: int
    rows_per_step: int  # rows of a training batch
    training_flops: float
    training_steps: int
    training_frames_predicted: float  # frames of audio that rows and steps were chosen to show
    training_seconds: float  # mean over seeds
    positions_per_second: float  # sequence positions that one second of audio takes
    likelihood: str  # "exact", or "bound": an upper bound of the bits
    bits_per_second: float  # held-out speech, every code counted once, end and length apart; mean over seeds
    bits_per_second_low: float  # its interval
    bits_per_second_high: float
    bits_per_second_se: float  # standard error of that mean over utterances alone (and over draws, for a bound)
    bits_per_second_per_codebook: list[float]
    end_bits_per_utterance: float | None  # predicting where the audio ends; null where it is not predicted
    length_bits_per_utterance: float | None  # predicting the number of frames; null where it is not predicted
    cer: ErrorRate  # all seeds together
    also: dict[str, Rate]  # split of config.evaluation.also -> code bits as above and their interval
    spread: Spreads
    seeds: list[Seed]
    cost: Cost
    speed: Speed
    training_curve: list[list[float]]  # [[step, bits per second of audio on training batches], ...]
    validation_curve: list[list[float]] = dataclasses.field(default_factory=list)  # the same on held-out speech
    samples: list[Sample]


@frozen
class Difference:
    a: str  # names of entries of one size
    b: str
    size: str
    metric: str  # "bits_per_second" or "cer"
    difference: float  # a minus b, mean over seeds
    low: float  # its interval, paired over utterances and seeds
    high: float
    # null, or what a difference is where a side is an upper bound of its bits: "upper" (a is one; the true difference
    # is smaller), "lower" (b is one; it is larger), "both" (nothing is certain). The interval is that of the bounds.
    bound: str | None


@frozen
class Corpus:
    name: str
    speakers: int
    utterances: dict[str, int]  # per split
    hours: dict[str, float]
    description: str = ""


@frozen
class Codec:
    name: str
    fingerprint: str
    frame_rate: float
    codebooks: int
    codebook_size: int
    sample_rate: int


@frozen
class Recogniser:
    fingerprint: str


@frozen
class Baselines:
    uniform_bits_per_second: float
    unigram_bits_per_second: float  # unigram of the training codes, per codebook, on the held-out codes
    per_codebook_unigram_bits_per_second: list[float]


@frozen
class Sentence:
    text: str
    speaker: str


@frozen
class HeldOut:
    utterance_seconds: list[float]  # of the utterances scored by likelihood
    sentence_characters: list[int]  # of the sentences that were spoken and heard


@frozen
class Results:
    schema: int  # VERSION
    title: str
    question: str
    command: str
    created: str  # ISO 8601, UTC
    commit: str
    versions: dict[str, str]
    hardware: dict[str, str | float]
    config: Any
    config_hash: str
    corpus: Corpus
    codec: Codec
    recogniser: Recogniser
    baselines: Baselines
    sentences: list[Sentence]  # those heard in the report
    ceilings: Ceilings
    equal: str  # within a size; a key of EQUAL
    held_out: HeldOut
    strategies: list[Strategy]
    differences: list[Difference]  # of every pair of strategies of a size, for both metrics
    notes: list[str]  # caveats, one sentence or two each


def validate(results: dict) -> Results:
    """Raises InputError naming the first key of `results` that is missing, unknown, of a wrong type, or not finite."""
    read = _read(results, Results, "results")
    if read.schema != VERSION:
        raise InputError(f"results.schema is {read.schema}; this version reads and writes {VERSION}")
    if not read.strategies:
        raise InputError("results.strategies is empty: there is nothing to report")
    if read.equal not in EQUAL:
        raise InputError(f"results.equal is {read.equal!r}, not one of {', '.join(EQUAL)}")
    names = set()
    for index, strategy in enumerate(read.strategies):
        where = f"results.strategies[{index}]"
        if strategy.name in names:
            raise InputError(f"{where}.name {strategy.name!r} appears twice")
        names.add(strategy.name)
        _check_strategy(strategy, read, where)
    for index, pair in enumerate(read.differences):
        where = f"results.differences[{index}]"
        for side, name in (("a", pair.a), ("b", pair.b)):
            if name not in names:
                raise InputError(f"{where}.{side} is {name!r}, which is not in results.strategies")
        if pair.metric not in ("bits_per_second", "cer") or pair.bound not in (None, "upper", "lower", "both"):
            raise InputError(f"{where} has the metric {pair.metric!r} and the bound {pair.bound!r}")
    for name, samples in sample_lists(results).items():
        for sample in samples:
            if not 0 <= sample["sentence"] < len(read.sentences):
                raise InputError(f"a sample of {name} names sentence {sample['sentence']}, which does not exist")
    return read


def _check_strategy(strategy: Strategy, results: Results, where: str) -> None:
    if strategy.likelihood not in ("exact", "bound"):
        raise InputError(f"{where}.likelihood is {strategy.likelihood!r}, not 'exact' or 'bound'")
    per_codebook, total = strategy.bits_per_second_per_codebook, strategy.bits_per_second
    if len(per_codebook) != results.codec.codebooks:
        raise InputError(f"{where} has bits of {len(per_codebook)} codebooks, the codec has {results.codec.codebooks}")
    if abs(sum(per_codebook) - total) > 1e-3 * max(1.0, abs(total)):
        raise InputError(f"{where}: bits per codebook sum to {sum(per_codebook)}, not {total}")
    for key in ("training_curve", "validation_curve"):
        if any(len(point) != 2 for point in getattr(strategy, key)):
            raise InputError(f"{where}.{key} must hold [step, bits per second] pairs")
    numbers = [one.seed for one in strategy.seeds]
    if not numbers or len(set(numbers)) < len(numbers):
        raise InputError(f"{where}.seeds holds the seeds {numbers}; there must be at least one, each once")
    for one in strategy.seeds:
        for key, of in (("utterance_bits", "utterance_seconds"), ("sentence_errors", "sentence_characters")):
            count, expected = len(getattr(one, key)), len(getattr(results.held_out, of))
            if count != expected:
                raise InputError(f"{where}: seed {one.seed} has {count} {key} for {expected} {of} in held_out")


def sample_lists(results: dict) -> dict[str, list[dict]]:
    """{"real": samples, "codec": samples, strategy name: samples, ...} in the order of the page."""
    lists = {name: results["ceilings"][name]["samples"] for name in ("real", "codec")}
    return lists | {strategy["name"]: strategy["samples"] for strategy in results["strategies"]}


def _read(value: Any, kind: Any, where: str) -> Any:
    """JSON values as `kind`: a dataclass of this file, a type, list[kind], dict[str, kind] or a union of kinds.

    float takes integers too; a boolean is no number. Raises InputError naming `where`.
    """
    inner = typing.get_args(kind)
    if kind is Any:
        _check_json(value, where)
    elif isinstance(kind, types.UnionType):
        if value is None and types.NoneType in inner:
            return None
        *options, last = [option for option in inner if option is not types.NoneType]
        for option in options:
            with contextlib.suppress(InputError):
                return _read(value, option, where)
        return _read(value, last, where)
    elif dataclasses.is_dataclass(kind) or typing.get_origin(kind) is dict:
        if not isinstance(value, dict):
            raise InputError(f"{where} must be an object, got {type(value).__name__}")
        if inner:
            return {key: _read(item, inner[1], f"{where}.{key}") for key, item in value.items()}
        return _read_object(value, kind, where)
    elif typing.get_origin(kind) is list:
        if not isinstance(value, list | tuple):
            raise InputError(f"{where} must be a list, got {type(value).__name__}")
        return [_read(item, inner[0], f"{where}[{index}]") for index, item in enumerate(value)]
    elif kind is float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(f"{where} must be a number, got {value!r}")
        if not math.isfinite(value):
            raise InputError(f"{where} is {value}; only finite numbers are written")
    elif not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise InputError(f"{where} must be {kind.__name__}, got {value!r}")
    return value


def _read_object(value: dict, kind: type, where: str) -> Any:
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for key in value:
        if key not in fields:
            raise InputError(f"{where}.{key} is not a key of the schema; known are {', '.join(fields)}")
    missing = dataclasses.MISSING
    for key, field in fields.items():
        if key not in value and field.default is missing and field.default_factory is missing:
            raise InputError(f"{where}.{key} is missing")
    return kind(**{key: _read(item, fields[key].type, f"{where}.{key}") for key, item in value.items()})


def _check_json(value: Any, where: str) -> None:
    """Raises InputError for what JSON cannot hold."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise InputError(f"{where}: {key!r} is not a string, so it cannot be a key")
            _check_json(item, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check_json(item, f"{where}[{index}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{where} is {value}; only finite numbers are written")
    elif value is not None and not isinstance(value, str | int | float | bool):
        raise InputError(f"{where} holds a {type(value).__name__}, which JSON has no form for")


def strip_times(results: dict) -> dict:
    """A copy without anything below the keys `TIMES` (at any depth, `config` excepted): what two equal runs share."""

    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: v if k == "config" else strip(v) for k, v in value.items() if k not in TIMES}
        if isinstance(value, list | tuple):
            return [strip(item) for item in value]
        return value

    return strip(results)


def write_results(results: dict, directory: Path) -> Path:
    """Validates, then writes `directory`/results.json (UTF-8, indented)."""
    validate(results)
    path = Path(directory) / "results.json"
    files.write_json(path, results, indent=1, ensure_ascii=False, allow_nan=False)
    return path
