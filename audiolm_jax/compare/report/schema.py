"""results.json: what a comparison measured. Every key is listed here; an unknown or missing key is an error.

Units: bits are base-2, "per second" means per second of audio, rates are fractions (0.05, not 5), sizes are bytes.
Wall-clock times live only below the keys `TIMES`, so two runs compare equal after `strip_times`.

Intervals are 95 %, over utterances and, where there are several, seeds (evaluation/intervals.py says what they cover).
They can be made again from `held_out` and the numbers of every seed:

    intervals.ratio([seed["utterance_bits"] for seed in strategy["seeds"]], held_out["utterance_seconds"])
    intervals.ratio([seed["sentence_errors"] for seed in strategy["seeds"]], held_out["sentence_characters"])

Version 2 has one entry of `strategies` for each strategy of each size, the mean over its seeds; version 1 had one run.
"""

import contextlib
import math
from pathlib import Path
from typing import Any

from audiolm_jax import files
from audiolm_jax.errors import InputError

VERSION = 2
EQUAL = {"flops": "parameters and training FLOPs", "tokens": "parameters and frames of audio seen"}
TIMES = frozenset({"speed", "training_seconds", "created", "hardware"})

# A spec is: a type (float takes ints too, bool is no number); [spec] a list of any length; {"key": spec} an object
# with exactly these keys, "key?" one that may be left out; {"*": spec} an object with free keys; a tuple of specs,
# any of them; None, null; ANY, whatever JSON holds.
ANY = object()

_CER = {
    "value": float,  # character error rate, all utterances together
    "low": float,  # its interval
    "high": float,
    "utterances": int,
    "second_opinion": (float, None),  # CER by pocketsphinx; null where its grammar does not fit
}
_SPREAD = {"sd": (float, None), "min": float, "max": float}  # over seeds; sd (of the sample) is null for one seed
_SAMPLE = {
    "sentence": int,  # index into `sentences`
    "file": str,  # audio, relative to results.json
    "transcript": str,  # what the recogniser heard
    "cer": float,
    "seconds": float,  # length of the audio
}
_CEILING = {"cer": _CER, "samples": [_SAMPLE]}
_SEED = {
    "seed": int,  # of initial weights, data order and training noise
    "run": str,  # the folder below runs/
    "bits_per_second": float,
    "cer": float,
    "training_seconds": float,
    "training_frames": int,  # frames of audio really shown in training
    "frames": int,  # of the utterance whose passes are counted
    "passes": int,  # sequential passes of the network for it
    "speed": {"rtf": float, "first_audio_seconds": float},
    "hardware": {"processor": str, "devices": str},  # that trained it
    "utterance_bits": [float],  # code bits of every held-out utterance, in the order of held_out.utterance_seconds
    "sentence_errors": [int],  # wrong characters of every sentence, in the order of held_out.sentence_characters
}
_STRATEGY = {
    "name": str,  # of this entry: the strategy, or strategy-size where there are several sizes
    "strategy": str,
    "size": str,  # a name in config.compare.sizes; "" where there are none
    "parameters": int,
    "rows_per_step": int,  # rows of a training batch
    "training_flops": float,
    "training_steps": int,
    "training_frames_predicted": float,  # frames of audio that rows and steps were chosen to show
    "training_seconds": float,  # mean over seeds
    "positions_per_second": float,  # sequence positions that one second of audio takes
    "likelihood": str,  # "exact", or "bound": an upper bound of the bits
    "bits_per_second": float,  # held-out speech, every code counted once, end and length apart; mean over seeds
    "bits_per_second_low": float,  # its interval
    "bits_per_second_high": float,
    "bits_per_second_se": float,  # standard error of that mean over utterances alone (and over draws, for a bound)
    "bits_per_second_per_codebook": [float],
    "end_bits_per_utterance": (float, None),  # predicting where the audio ends; null where it is not predicted
    "length_bits_per_utterance": (float, None),  # predicting the number of frames; null where it is not predicted
    "cer": _CER,  # all seeds together
    # Of every split in config.evaluation.also: code bits as above and their interval.
    "also": {"*": {"bits_per_second": float, "low": float, "high": float, "utterances": int}},
    "spread": {"bits_per_second": _SPREAD, "cer": _SPREAD},
    "seeds": [_SEED],
    # Of the first seed, from here on.
    "cost": {
        "frames": int,  # of the utterance the passes are counted for
        "predicted_passes": float,  # sequential passes of the network for that utterance
        "measured_passes": float,
        "lookahead_frames": float,  # frames begun before the first one is complete; all frames if not causal
        "first_audio_passes": float,  # sequential passes before the first frame is complete
        "positions?": float,
        "flops?": float,
        "kv_bytes?": float,
    },
    "speed": {
        "rtf": float,  # seconds of work for one second of audio, one utterance at a time
        "generation_seconds": float,  # the sentences spoken with a clock, all together
        "generation_predicted_seconds": float,  # roofline of the network's passes on the rates of this machine
        "first_audio_seconds": float,  # measured
        "first_audio_predicted_seconds": (float, None),  # first_audio_passes times the measured time of a pass
        "training_steps_per_second?": float,
    },
    "training_curve": [[float]],  # [[step, bits per second of audio on training batches], ...]
    "validation_curve?": [[float]],  # the same on held-out speech
    "samples": [_SAMPLE],
}
_DIFFERENCE = {
    "a": str,  # names of entries of one size
    "b": str,
    "size": str,
    "metric": str,  # "bits_per_second" or "cer"
    "difference": float,  # a minus b, mean over seeds
    "low": float,  # its interval, paired over utterances and seeds
    "high": float,
    # null, or what a difference is where a side is an upper bound of its bits: "upper" (a is one; the true difference
    # is smaller), "lower" (b is one; it is larger), "both" (nothing is certain). The interval is that of the bounds.
    "bound": (str, None),
}
SPEC = {
    "schema": int,
    "title": str,
    "question": str,
    "command": str,
    "created": str,  # ISO 8601, UTC
    "commit": str,
    "versions": {"*": str},
    "hardware": {"*": (str, float)},
    "config": ANY,
    "config_hash": str,
    "corpus": {
        "name": str,
        "speakers": int,
        "utterances": {"*": int},  # per split
        "hours": {"*": float},
        "description?": str,
    },
    "codec": {
        "name": str,
        "fingerprint": str,
        "frame_rate": float,
        "codebooks": int,
        "codebook_size": int,
        "sample_rate": int,
    },
    "recogniser": {"fingerprint": str},
    "baselines": {
        "uniform_bits_per_second": float,
        "unigram_bits_per_second": float,  # unigram of the training codes, per codebook, on the held-out codes
        "per_codebook_unigram_bits_per_second": [float],
    },
    "sentences": [{"text": str, "speaker": str}],  # those heard in the report
    "ceilings": {"real": _CEILING, "codec": _CEILING},
    "equal": str,  # within a size; a key of EQUAL
    "held_out": {
        "utterance_seconds": [float],  # of the utterances scored by likelihood
        "sentence_characters": [int],  # of the sentences that were spoken and heard
    },
    "strategies": [_STRATEGY],
    "differences": [_DIFFERENCE],  # of every pair of strategies of a size, for both metrics
    "notes": [str],  # caveats, one sentence or two each
}


def validate(results: dict) -> None:
    """Raises InputError naming the first key of `results` that is missing, unknown, of a wrong type, or not finite."""
    _check(results, SPEC, "results")
    if results["schema"] != VERSION:
        raise InputError(f"results.schema is {results['schema']}; this version reads and writes {VERSION}")
    if not results["strategies"]:
        raise InputError("results.strategies is empty: there is nothing to report")
    codebooks, names = results["codec"]["codebooks"], set()
    for index, strategy in enumerate(results["strategies"]):
        where = f"results.strategies[{index}]"
        if strategy["name"] in names:
            raise InputError(f"{where}.name {strategy['name']!r} appears twice")
        names.add(strategy["name"])
        if strategy["likelihood"] not in ("exact", "bound"):
            raise InputError(f"{where}.likelihood is {strategy['likelihood']!r}, not 'exact' or 'bound'")
        per_codebook = strategy["bits_per_second_per_codebook"]
        if len(per_codebook) != codebooks:
            raise InputError(f"{where} has bits of {len(per_codebook)} codebooks, the codec has {codebooks}")
        total = strategy["bits_per_second"]
        if abs(sum(per_codebook) - total) > 1e-3 * max(1.0, abs(total)):
            raise InputError(f"{where}: bits per codebook sum to {sum(per_codebook)}, not {total}")
        _check_seeds(strategy, results["held_out"], where)
        for key in ("training_curve", "validation_curve"):
            if any(len(point) != 2 for point in strategy.get(key, [])):
                raise InputError(f"{where}.{key} must hold [step, bits per second] pairs")
    if results["equal"] not in EQUAL:
        raise InputError(f"results.equal is {results['equal']!r}, not one of {', '.join(EQUAL)}")
    for index, pair in enumerate(results["differences"]):
        where = f"results.differences[{index}]"
        for side in ("a", "b"):
            if pair[side] not in names:
                raise InputError(f"{where}.{side} is {pair[side]!r}, which is not in results.strategies")
        if pair["metric"] not in ("bits_per_second", "cer") or pair["bound"] not in (None, "upper", "lower", "both"):
            raise InputError(f"{where} has the metric {pair['metric']!r} and the bound {pair['bound']!r}")
    for name, samples in sample_lists(results).items():
        for sample in samples:
            if not 0 <= sample["sentence"] < len(results["sentences"]):
                raise InputError(f"a sample of {name} names sentence {sample['sentence']}, which does not exist")


def _check_seeds(strategy: dict, held_out: dict, where: str) -> None:
    """Raises InputError for no seeds, one twice, and numbers that do not belong to the held-out set."""
    numbers = [one["seed"] for one in strategy["seeds"]]
    if not numbers or len(set(numbers)) < len(numbers):
        raise InputError(f"{where}.seeds holds the seeds {numbers}; there must be at least one, each once")
    for one in strategy["seeds"]:
        for key, of in (("utterance_bits", "utterance_seconds"), ("sentence_errors", "sentence_characters")):
            if len(one[key]) != len(held_out[of]):
                raise InputError(
                    f"{where}: seed {one['seed']} has {len(one[key])} {key} for {len(held_out[of])} {of} in held_out"
                )


def sample_lists(results: dict) -> dict[str, list[dict]]:
    """{"real": samples, "codec": samples, strategy name: samples, ...} in the order of the page."""
    lists = {name: results["ceilings"][name]["samples"] for name in ("real", "codec")}
    return lists | {strategy["name"]: strategy["samples"] for strategy in results["strategies"]}


def _check(value: Any, spec: Any, where: str) -> None:
    if spec is ANY:
        _check_json(value, where)
    elif isinstance(spec, tuple):
        if not (value is None and None in spec):
            _check_any(value, [option for option in spec if option is not None], where)
    elif isinstance(spec, list):
        if not isinstance(value, list | tuple):
            raise InputError(f"{where} must be a list, got {type(value).__name__}")
        for index, item in enumerate(value):
            _check(item, spec[0], f"{where}[{index}]")
    elif isinstance(spec, dict):
        _check_object(value, spec, where)
    elif spec is float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(f"{where} must be a number, got {value!r}")
        if not math.isfinite(value):
            raise InputError(f"{where} is {value}; only finite numbers are written")
    elif not isinstance(value, spec) or (spec is int and isinstance(value, bool)):
        raise InputError(f"{where} must be {spec.__name__}, got {value!r}")


def _check_any(value: Any, options: list, where: str) -> None:
    for option in options[:-1]:
        with contextlib.suppress(InputError):
            _check(value, option, where)
            return
    _check(value, options[-1], where)


def _check_object(value: Any, spec: dict, where: str) -> None:
    if not isinstance(value, dict):
        raise InputError(f"{where} must be an object, got {type(value).__name__}")
    if "*" in spec:
        for key, item in value.items():
            _check(item, spec["*"], f"{where}.{key}")
        return
    known = {key.rstrip("?"): item for key, item in spec.items()}
    for key in value:
        if key not in known:
            raise InputError(f"{where}.{key} is not a key of the schema; known are {', '.join(known)}")
    for key in spec:
        if not key.endswith("?") and key not in value:
            raise InputError(f"{where}.{key} is missing")
    for key, item in value.items():
        _check(item, known[key], f"{where}.{key}")


def _check_json(value: Any, where: str) -> None:
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
