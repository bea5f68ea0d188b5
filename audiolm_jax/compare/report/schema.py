"""results.json: what a comparison measured. Every key is a field of `Results`; an unknown or missing key is an error.

Units: bits are base-2, "per second" means per second of audio, rates are fractions (0.05, not 5), sizes are bytes.
Wall-clock times are only below the keys "speed", "training_seconds", "created" and "hardware": two runs of one
configuration agree in all others. A field with a default is a key that may be left out.

Intervals are 95 %, over utterances and, where there are several, seeds (evaluation/intervals.py says what they cover).
An interval is null below intervals.UTTERANCES utterances, with two seeds, and of errors where there are none. The
others can be computed again from `held_out` and the numbers of every seed:

    intervals.ratio([seed["utterance_bits"] for seed in strategy["seeds"]], held_out["utterance_seconds"])
    intervals.ratio([seed["sentence_errors"] for seed in strategy["seeds"]], held_out["sentence_characters"])

Results of an earlier commit with the same version have intervals by another method, and none that is null.
Version 2 has one entry of `strategies` for each strategy of each size, the mean over its seeds; version 1 had one run.
"""

import reprlib
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from audiolm_jax import files
from audiolm_jax.errors import InputError
from audiolm_jax.evaluation import intelligibility

VERSION = 2
EQUAL = {"flops": "parameters and training FLOPs", "tokens": "parameters and frames of audio seen"}


class Object(pydantic.BaseModel, frozen=True, extra="forbid", strict=True, allow_inf_nan=False, defer_build=True):
    """An object of results.json. Strict: an integer is a float too, a boolean or a numeral in quotes is no number."""


class ErrorRate(Object):
    value: float  # character error rate, all utterances together
    low: float | None  # its interval
    high: float | None
    utterances: int
    second_opinion: float | None  # CER by pocketsphinx; null where its grammar does not fit


class Spread(Object):
    """Over seeds."""

    sd: float | None  # of the sample; null for one seed
    min: float
    max: float


class Spreads(Object):
    bits_per_second: Spread
    cer: Spread


class Sample(Object):
    sentence: int  # index into `sentences`
    file: str  # audio, relative to results.json
    transcript: str  # what the recogniser heard
    cer: float
    seconds: float  # length of the audio


class Ceiling(Object):
    cer: ErrorRate
    samples: list[Sample]


class Ceilings(Object):
    real: Ceiling
    codec: Ceiling


class SeedSpeed(Object):
    rtf: float
    first_audio_seconds: float


class Machine(Object):
    processor: str
    devices: str


class Seed(Object):
    seed: int  # of initial weights, data order and training noise
    run: str  # the folder below runs/
    bits_per_second: float
    cer: float
    training_seconds: float
    training_frames: int  # frames of audio really shown in training
    frames: int  # of the utterance whose passes are counted
    passes: int  # sequential passes of the network for it
    speed: SeedSpeed
    hardware: Machine  # of the training
    utterance_bits: list[float]  # code bits of every held-out utterance, in the order of held_out.utterance_seconds
    sentence_errors: list[int]  # wrong characters of every sentence, in the order of held_out.sentence_characters


class Rate(Object):
    bits_per_second: float
    low: float | None
    high: float | None
    utterances: int


class Cost(Object):
    frames: int  # of the utterance the passes are counted for
    predicted_passes: float  # sequential passes of the network for that utterance
    measured_passes: float
    lookahead_frames: float  # frames begun before the first one is complete; all frames if not causal
    first_audio_passes: float  # sequential passes before the first frame is complete
    depth_passes: float = 0.0  # of the depth network, between the passes of the transformer
    positions: float = 0.0
    flops: float = 0.0
    kv_bytes: float = 0.0


class Speed(Object):
    rtf: float  # seconds of work for one second of audio, one utterance at a time
    generation_seconds: float  # the sentences spoken with a clock, all together
    generation_predicted_seconds: float  # roofline of the network's passes on the rates of this machine
    first_audio_seconds: float  # measured
    first_audio_predicted_seconds: float | None  # first_audio_passes times the measured time of a pass
    training_steps_per_second: float = 0.0


Point = Annotated[list[float], pydantic.Field(min_length=2, max_length=2)]  # [step, value]


class Strategy(Object):
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
    likelihood: Literal["exact", "bound"]  # bound: an upper bound of the bits
    bits_per_second: float  # held-out speech, every code counted once, end and length apart; mean over seeds
    bits_per_second_low: float | None  # its interval
    bits_per_second_high: float | None
    bits_per_second_se: float | None  # standard error of that mean over utterances alone (and over draws, for a bound)
    bits_per_second_per_codebook: list[float]
    end_bits_per_utterance: float | None  # predicting where the audio ends; null where it is not predicted
    length_bits_per_utterance: float | None  # predicting the number of frames; null where it is not predicted
    cer: ErrorRate  # all seeds together
    also: dict[str, Rate]  # split of config.evaluation.also -> code bits as above and their interval
    spread: Spreads
    seeds: list[Seed]
    cost: Cost
    speed: Speed
    training_curve: list[Point]  # bits per second of audio on training batches
    validation_curve: list[Point] = []  # the same on held-out speech (training.evaluate_every)
    samples: list[Sample]


class Difference(Object):
    a: str  # names of entries of one size
    b: str
    size: str
    metric: Literal["bits_per_second", "cer"]
    difference: float  # a minus b, mean over seeds
    low: float | None  # its interval, paired over utterances and seeds
    high: float | None
    # null, or what a difference is where a side is an upper bound of its bits: "upper" (a is one; the true difference
    # is smaller), "lower" (b is one; it is larger), "both" (nothing is certain). The interval is that of the bounds.
    bound: Literal["upper", "lower", "both"] | None


class Corpus(Object):
    name: str
    speakers: int
    utterances: dict[str, int]  # per split
    hours: dict[str, float]
    description: str = ""


class Codec(Object):
    name: str
    fingerprint: str
    frame_rate: float
    codebooks: int
    codebook_size: int
    sample_rate: int


class Recogniser(Object):
    fingerprint: str


class Baselines(Object):
    uniform_bits_per_second: float
    unigram_bits_per_second: float  # unigram of the training codes, per codebook, on the held-out codes
    per_codebook_unigram_bits_per_second: list[float]
    also_unigram_bits_per_second: dict[str, float] = {}  # the same on the splits of config.evaluation.also


class Sentence(Object):
    text: str
    speaker: str


class HeldOut(Object):
    utterance_seconds: list[float]  # of the utterances scored by likelihood
    sentence_characters: list[int]  # of the sentences that were spoken and heard


class Results(Object):
    version: Literal[2] = pydantic.Field(alias="schema")  # VERSION
    title: str
    question: str
    command: str
    created: str  # ISO 8601, UTC
    commit: str
    versions: dict[str, str]
    hardware: dict[str, str | float]
    config: pydantic.JsonValue
    config_hash: str
    corpus: Corpus
    codec: Codec
    recogniser: Recogniser
    baselines: Baselines
    sentences: list[Sentence]  # those heard in the report
    ceilings: Ceilings
    equal: Literal["flops", "tokens"]  # within a size
    held_out: HeldOut
    strategies: list[Strategy]
    differences: list[Difference]  # of every pair of strategies of a size, for both metrics
    notes: list[str]  # caveats, one sentence or two each


def validate(results: dict) -> Results:
    """Raises InputError naming the first key of `results` that is missing, unknown, of a wrong type, or not finite."""
    try:
        read = Results.model_validate(results)
    except pydantic.ValidationError as error:
        raise InputError(_sentence(error.errors()[0], results)) from None
    if not read.strategies:
        raise InputError("results.strategies is empty: there is nothing to report")
    names = [strategy.name for strategy in read.strategies]
    for index, strategy in enumerate(read.strategies):
        where = f"results.strategies[{index}]"
        if strategy.name in names[:index]:
            raise InputError(f"{where}.name {strategy.name!r} appears twice")
        _check_strategy(strategy, read, where)
    for index, pair in enumerate(read.differences):
        for side, name in (("a", pair.a), ("b", pair.b)):
            if name not in names:
                raise InputError(f"results.differences[{index}].{side} is {name!r}, which is not in results.strategies")
    for name, samples in sample_lists(results).items():
        for sample in samples:
            if not 0 <= sample["sentence"] < len(read.sentences):
                raise InputError(f"a sample of {name} names sentence {sample['sentence']}, which does not exist")
    return read


def _sentence(error: Any, value: Any) -> str:
    """The message for one of the `errors` of a ValidationError of the results `value`."""
    path = "results"
    for step in error["loc"]:
        if isinstance(value, dict) and (step in value or error["type"] == "missing"):
            path, value = f"{path}.{step}", value.get(step)
        elif isinstance(value, list) and isinstance(step, int):
            path, value = f"{path}[{step}]", value[step]
        # else it is the name of a member of a union
    if error["type"] == "missing":
        return f"{path} is missing"
    if error["type"] == "extra_forbidden":
        return f"{path} is not a key of the schema (compare/report/schema.py)"
    return f"{path} is {reprlib.repr(error['input'])}: {error['msg'][0].lower()}{error['msg'][1:]}"


def _check_strategy(strategy: Strategy, results: Results, where: str) -> None:
    per_codebook, total = strategy.bits_per_second_per_codebook, strategy.bits_per_second
    if len(per_codebook) != results.codec.codebooks:
        raise InputError(f"{where} has bits of {len(per_codebook)} codebooks, the codec has {results.codec.codebooks}")
    if abs(sum(per_codebook) - total) > 1e-3 * max(1.0, abs(total)):
        raise InputError(f"{where}: bits per codebook sum to {sum(per_codebook)}, not {total}")
    seeds = [run.seed for run in strategy.seeds]
    if not seeds or len(set(seeds)) < len(seeds):
        raise InputError(f"{where}.seeds holds the seeds {seeds}; there must be at least one, each once")
    for run in strategy.seeds:
        for key, base in (("utterance_bits", "utterance_seconds"), ("sentence_errors", "sentence_characters")):
            count, expected = len(getattr(run, key)), len(getattr(results.held_out, base))
            if count != expected:
                raise InputError(f"{where}: seed {run.seed} has {count} {key} for {expected} {base} in held_out")


def meaningless(results: dict) -> str:
    """A sentence if the recogniser is no judge of the speech of these results, else "" (see `intelligibility`)."""
    return intelligibility.meaningless(*(results["ceilings"][name]["cer"]["value"] for name in ("real", "codec")))


def sample_lists(results: dict) -> dict[str, list[dict]]:
    """{"real": samples, "codec": samples, strategy name: samples, ...} in the order of the page."""
    lists = {name: results["ceilings"][name]["samples"] for name in ("real", "codec")}
    return lists | {strategy["name"]: strategy["samples"] for strategy in results["strategies"]}


def write_results(results: dict, directory: Path) -> Path:
    """Validates, then writes `directory`/results.json (UTF-8, indented)."""
    validate(results)
    path = Path(directory) / "results.json"
    files.write_json(path, results, indent=1, ensure_ascii=False, allow_nan=False)
    return path
