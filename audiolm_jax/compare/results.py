"""From the numbers of the cells to results.json (report/schema.py): means over seeds, intervals, differences, notes."""

import contextlib
import dataclasses
import datetime
import importlib.metadata
import itertools
import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from audiolm_jax.compare import report
from audiolm_jax.compare.cells import Cell
from audiolm_jax.evaluation import intervals, speed
from audiolm_jax.files import digest

PACKAGES = ("audiolm-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint")
PACKAGES += ("grain", "tensorflow-datasets", "numpy")
# The likelihoods of a and b -> what the difference of their bits is: a bound on a is at least its bits, so the true
# difference is smaller; with a bound on b it is larger.
BOUNDS = {
    ("exact", "exact"): None,
    ("bound", "exact"): "upper",
    ("exact", "bound"): "lower",
    ("bound", "bound"): "both",
}
KEYS = {"bits_per_second": ("utterance_bits", "utterance_seconds"), "cer": ("sentence_errors", "sentence_characters")}


def assemble(
    config: ConfigDict, command: str, shared: dict, cells: Sequence[Cell], shares: Mapping, measured: Mapping[str, dict]
) -> dict:
    """results.json.

    Args:
      shared: "corpus", "codec", "recogniser", "baselines", "sentences" and "ceilings" of the results.
      shares: see `budget.equal_shares`.
      measured: name of a cell -> its numbers (`compare.measure`).
    """
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.entry, []).append(cell)
    strategies = [_entry(entry, members, shares, measured) for entry, members in groups.items()]
    first = measured[cells[0].name]
    return {
        **environment(command),
        "schema": report.schema.VERSION,
        "title": "Orders on the codec grid, compared",
        "question": "In which order should a language model predict the codes of speech?",
        "config": json.loads(json.dumps(config.to_dict())),  # tuples as lists
        "config_hash": digest(config.to_dict()),
        **shared,
        "equal": config.compare.equal,
        "held_out": {key: first[key] for _, key in KEYS.values()},
        "strategies": strategies,
        "differences": differences(groups, measured),
        "notes": notes(config, strategies),
    }


def _numbers(members: Sequence[Cell], measured: Mapping[str, dict], metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Numerators [S, U] and denominators [U] of a metric over the seeds of an entry."""
    numerator, denominator = KEYS[metric]
    rows = [measured[cell.name][numerator] for cell in members]
    return np.array(rows), np.array(measured[members[0].name][denominator])


def _entry(entry: str, members: Sequence[Cell], shares: Mapping, measured: Mapping[str, dict]) -> dict:
    """One strategy of one size: means and intervals over its seeds; cost, speed, samples, curve of the first."""
    runs = [measured[cell.name] for cell in members]
    first, cell = runs[0], members[0]
    (bits_SU, seconds_U), (errors_SU, characters_U) = (_numbers(members, measured, metric) for metric in KEYS)
    bits, cer = intervals.ratio(bits_SU, seconds_U), intervals.ratio(errors_SU, characters_U)
    error = None if intervals.lacking(len(seconds_U)) else intervals.standard_error(bits_SU.mean(axis=0), seconds_U)
    opinions = [run["cer"]["second_opinion"] for run in runs]

    def mean(key: str) -> Any:
        return None if first[key] is None else np.mean([run[key] for run in runs], axis=0).tolist()

    return {
        "name": entry,
        "strategy": cell.strategy,
        "size": cell.size,
        **shares[cell.size, cell.strategy],
        "training_seconds": mean("training_seconds"),
        "likelihood": first["likelihood"],
        "bits_per_second": bits.value,
        "bits_per_second_low": bits.low,
        "bits_per_second_high": bits.high,
        "bits_per_second_se": error,
        "bits_per_second_per_codebook": mean("bits_per_second_per_codebook"),
        "end_bits_per_utterance": mean("end_bits_per_utterance"),
        "length_bits_per_utterance": mean("length_bits_per_utterance"),
        "cer": {
            **dataclasses.asdict(cer),
            "utterances": len(characters_U),
            "second_opinion": None if None in opinions else float(np.mean(opinions)),
        },
        "also": {split: _also([run["also"][split] for run in runs]) for split in first["also"]},
        "cost": first["cost"],
        "speed": first["speed"],
        "spread": {
            "bits_per_second": intervals.spread(intervals.rates(bits_SU, seconds_U)),
            "cer": intervals.spread(intervals.rates(errors_SU, characters_U)),
        },
        "seeds": [
            {
                "seed": cell.seed,
                "run": cell.name,
                "bits_per_second": run["bits_per_second"],
                "cer": run["cer"]["value"],
                "training_seconds": run["training_seconds"],
                "training_frames": run["training_frames"],
                "frames": run["cost"]["frames"],
                "passes": run["cost"]["measured_passes"],
                "speed": {key: run["speed"][key] for key in ("rtf", "first_audio_seconds")},
                **{key: run[key] for key in ("hardware", "utterance_bits", "sentence_errors")},
            }
            for cell, run in zip(members, runs, strict=True)
        ],
        "training_curve": first["training_curve"],
        "validation_curve": first.get("validation_curve", []),
        "samples": first["samples"],
    }


def _also(runs: Sequence[dict]) -> dict:
    """Likelihood on a further split, over seeds."""
    bits_SU = np.array([run["utterance_bits"] for run in runs])
    bits = intervals.ratio(bits_SU, np.array(runs[0]["utterance_seconds"]))
    return {"bits_per_second": bits.value, "low": bits.low, "high": bits.high, "utterances": bits_SU.shape[1]}


def differences(groups: Mapping[str, Sequence[Cell]], measured: Mapping[str, dict]) -> list[dict]:
    """Every pair of strategies of one size, a minus b, paired over utterances and seeds."""
    pairs = []
    for (a, a_cells), (b, b_cells) in itertools.combinations(groups.items(), 2):
        if a_cells[0].size != b_cells[0].size:
            continue
        for metric in KEYS:
            (a_SU, denominators_U), (b_SU, _) = (_numbers(members, measured, metric) for members in (a_cells, b_cells))
            interval = intervals.difference(a_SU, b_SU, denominators_U)
            tags = tuple(measured[members[0].name]["likelihood"] for members in (a_cells, b_cells))
            pair = {"a": a, "b": b, "size": a_cells[0].size, "metric": metric, "difference": interval.value}
            bound = BOUNDS[tags] if metric == "bits_per_second" else None
            pairs.append(pair | {"low": interval.low, "high": interval.high, "bound": bound})
    return pairs


def environment(command: str) -> dict[str, Any]:
    """The command, time, commit, versions and hardware."""
    repository, commit = Path(__file__).resolve().parents[2], "unknown"
    if (repository / ".git").exists():
        describe = ["git", "-C", str(repository), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            commit = subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    versions = {"python": platform.python_version()}
    versions |= {name: importlib.metadata.version(name) for name in PACKAGES}
    return {
        "command": command,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit,
        "versions": versions,
        "hardware": speed.hardware(),
    }


def notes(config: ConfigDict, strategies: Sequence[dict]) -> list[str]:
    """Caveats of the numbers."""
    sentences = []
    if config.compare.equal == "flops":
        sentences.append(
            "Equal training compute: every strategy takes the same number of steps on batches of the same shape. A "
            "strategy that spends more positions on a second of speech has therefore seen fewer seconds of it."
        )
    else:
        sentences.append(
            "Equal speech: every strategy was shown the same frames of audio, per step (to whole rows of a batch) and "
            "in all. A strategy that spends more positions on a second of speech has taken more training compute."
        )
        sentences += _unequal(strategies, config.compare.tolerance)
    if config.corpus.name == "synthetic":
        sentences.append(
            "Synthetic speech is far easier than recordings of people: the numbers compare strategies under equal "
            "conditions and say nothing about quality in the wild."
        )
    if any(strategy["likelihood"] == "bound" for strategy in strategies):
        sentences.append(
            "The likelihood of masked is an upper bound on its bits (any order of the cells within a codebook), with "
            "its standard error: sampling by confidence has no likelihood that can be computed."
        )
    if len({(run["hardware"]["processor"], run["hardware"]["devices"]) for s in strategies for run in s["seeds"]}) > 1:
        sentences.append("The runs were made on different machines: their times do not compare.")
    return sentences


def _unequal(strategies: Sequence[dict], tolerance: float) -> list[str]:
    """A sentence for each size whose strategies were shown frames that differ by more than the tolerance."""
    sentences = []
    for size in dict.fromkeys(strategy["size"] for strategy in strategies):
        frames = {}
        for strategy in strategies:
            if strategy["size"] == size:
                frames[strategy["name"]] = np.mean([run["training_frames"] for run in strategy["seeds"]])
        low, high = min(frames, key=frames.get), max(frames, key=frames.get)
        if frames[high] > (1 + tolerance) * frames[low]:
            sentences.append(
                f"Not quite equal: {high} was in fact shown {frames[high]:.0f} frames and {low} {frames[low]:.0f}, "
                f"which is more than the {tolerance:.0%} that compare.tolerance allows."
            )
    return sentences


def budget_table(cells: Sequence[Cell], shares: Mapping, equal: str, frame_rate: float) -> str:
    """The budget of every entry as text, printed before training."""
    entries = {cell.entry: shares[cell.size, cell.strategy] for cell in cells}
    lines = [
        f"   {name:22s} {share['parameters'] / 1e6:.3f} M parameters, {share['training_steps']} steps of "
        f"{share['rows_per_step']} rows, {share['training_flops']:.3e} training FLOPs, "
        f"{share['training_frames_predicted'] / frame_rate / 3600:.3f} h of audio"
        for name, share in entries.items()
    ]
    seeds = ", ".join(str(seed) for seed in dict.fromkeys(cell.seed for cell in cells))
    return "\n".join([f"   equal: {report.schema.EQUAL[equal]}; seeds {seeds}; {len(cells)} runs", *lines])


def interval_table(cells: Sequence[Cell], utterances: int, sentences: int) -> str:
    """What will have no interval or no verdict, printed before training; "" if nothing."""
    seeds, fewest = len({cell.seed for cell in cells}), intervals.UTTERANCES
    lines = [
        f"no interval of {what}: {lacking}; {remedy}"
        for what, count, remedy in (
            ("bits per second", utterances, f"{fewest} utterances are needed in the split"),
            ("character errors", sentences, f"{fewest} sentences with text are needed (evaluation.sentences)"),
        )
        if (lacking := intervals.lacking(count))
    ]
    if lacking := intervals.lacking(fewest, seeds):
        lines.append(f"no interval: {lacking}; take {intervals.SEEDS} or more, or one")
    if seeds < intervals.SEEDS:
        alone = "one seed: intervals are over utterances alone, and there is " if seeds == 1 else ""
        lines.append(f"{alone}no verdict on the strategies; {intervals.SEEDS} seeds (compare.seeds) are needed")
    return "\n".join(f"   {line}" for line in lines)


def table(results: dict) -> str:
    """The main numbers as text."""
    ceilings, held, rows = results["ceilings"], results["held_out"], []
    head = ("strategy", "bits per second (95 %)", "CER", "RTF", "passes", "first s")
    for strategy in results["strategies"]:
        sign = "<=" if strategy["likelihood"] == "bound" else "  "
        ends = intervals.Interval(*(strategy[f"bits_per_second{end}"] for end in ("", "_low", "_high")))
        interval = intervals.text(ends, "{:.1f}", len(held["utterance_seconds"]), len(strategy["seeds"]))
        times, passes = strategy["speed"], strategy["cost"]["measured_passes"]
        rows.append(
            f"   {strategy['name']:22s} {sign}{ends.value:7.1f} {interval}".ljust(66)
            + f" {strategy['cer']['value']:8.3f} {times['rtf']:8.3f} {passes:8d} {times['first_audio_seconds']:10.3f}"
        )
    return "\n".join(
        [
            "   {:22s} {:39s} {:>8s} {:>8s} {:>8s} {:>10s}".format(*head),
            *rows,
            f"   {'unigram':22s}   {results['baselines']['unigram_bits_per_second']:7.1f}",
            f"   {'uniform':22s}   {results['baselines']['uniform_bits_per_second']:7.1f}",
            f"   {'recordings':22s} {'':39s} {ceilings['real']['cer']['value']:8.3f}",
            f"   {'through codec':22s} {'':39s} {ceilings['codec']['cer']['value']:8.3f}",
            *([f"   {no_judge}"] if (no_judge := report.meaningless(results)) else []),
        ]
    )
