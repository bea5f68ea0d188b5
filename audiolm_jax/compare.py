"""Several serialization strategies under equal conditions: same speech, codec, backbone, parameters and training FLOPs.

Every stage keeps its result in the workdir (`stages.py`), and what a stage makes on the way survives being killed, so
that the same command again goes on where it was stopped and ends with the same numbers.

    WORKDIR/config.json            what is compared; another configuration is refused
    WORKDIR/data/                  corpus and tokens
    WORKDIR/runs/STRATEGY/         one training run each
    WORKDIR/speech/                recordings, the same after the codec, and what was spoken, as wav files
    WORKDIR/stages/                one result per stage
    WORKDIR/results.json           all numbers (report/schema.py)
    WORKDIR/report.html            the page
"""

import contextlib
import dataclasses
import datetime
import functools
import importlib.metadata
import platform
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from ml_collections import ConfigDict

from audiolm_jax import config as configs
from audiolm_jax import generate, measures, report, runs, serialization, sharding, tokens, training
from audiolm_jax.errors import InputError
from audiolm_jax.evaluation import speed
from audiolm_jax.model import ModelConfig, Transformer
from audiolm_jax.serialization import Grid, SerializationConfig, cost, picture
from audiolm_jax.stages import Stages, digest
from audiolm_jax.vocab import Vocab

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "numpy")


@dataclasses.dataclass(frozen=True)
class CompareConfig:
    """What is compared, and under which budget."""

    strategies: tuple[str, ...] = ("flat", "delay", "hierarchical", "masked")
    flops: float = 0.0  # training FLOPs of every strategy; 0: what training.steps steps take
    tolerance: float = 0.05  # largest difference of parameters and of FLOPs between strategies, as a fraction

    def __post_init__(self) -> None:
        if not self.strategies:
            raise InputError("compare.strategies is empty; it must name at least one strategy")
        for name in self.strategies:
            if name not in serialization.STRATEGIES:
                known = ", ".join(serialization.STRATEGIES)
                raise InputError(f"compare.strategies holds {name!r}; strategies are {known}")
        if len(set(self.strategies)) < len(self.strategies):
            raise InputError(f"compare.strategies is {self.strategies}; a strategy may be named once")
        if self.flops < 0 or self.tolerance < 0:
            raise InputError(f"compare.flops={self.flops} and compare.tolerance={self.tolerance} must not be negative")


def run(config: ConfigDict, workdir: Path, command: str = "", progress: bool = True) -> Path:
    """All stages; returns the path of the report.

    Raises InputError for a workdir of another configuration, strategies that cannot have equal shares, and for
    whatever the stages refuse.
    """
    training.claim(workdir, config.to_dict())
    stages, folder = Stages(workdir / "stages"), workdir / "data"
    used = {name: section.to_dict() for name, section in config.items() if isinstance(section, ConfigDict)}
    section, evaluation = configs.section(config, "data"), configs.section(config, "evaluation")
    judge = measures.load_judge(evaluation)  # a missing recogniser is told before the hours of training

    recordings = functools.cache(lambda: runs.utterances(config, folder, progress))
    corpus = stages.run("corpus", lambda: describe_corpus(recordings()), used["corpus"])
    metadata = stages.run(
        "tokens", lambda: runs.prepare(config, folder, progress), used["codec"], used["tokens"], after=["corpus"]
    )
    vocab, fingerprint = runs.vocabulary(config, metadata), metadata["codec_fingerprint"]
    shares = equal_shares(config, vocab, metadata["frame_rate"])
    for name, share in shares.items():
        print(
            f"   {name:13s} {share['parameters'] / 1e6:.3f} M parameters, {share['training_steps']} steps, "
            f"{share['training_flops']:.3e} training FLOPs"
        )
    parts = variants(config, vocab.codebooks)
    for name, share in shares.items():
        parts[name].training.steps = share["training_steps"]
        inputs = [
            parts[name].to_dict()[key] for key in ("data", "serialization", "model", "optimizer", "training", "seed")
        ]
        make = partial(train, parts[name], folder, workdir / "runs" / name, progress)
        stages.run(f"train-{name}", make, *inputs, after=["tokens"])

    held = [used["evaluation"], used["data"]]
    baselines = stages.run(
        "baselines", partial(measures.unigram, folder, section, evaluation, fingerprint), *held, after=["tokens"]
    )
    examples = measures.held_out(folder, section, evaluation, vocab, fingerprint, evaluation.sentences)
    speech = workdir / "speech"

    def listen_to_recordings() -> dict:
        return measures.ceilings(recordings(), examples, configs.section(config, "codec"), judge, evaluation, speech)

    ceilings = stages.run("ceilings", listen_to_recordings, *held, judge.fingerprint, after=["tokens"])

    def measure(name: str) -> dict:
        run_folder, after = workdir / "runs" / name, [f"train-{name}"]
        load = functools.cache(partial(generate.load, run_folder, configs.section(config, "sampling")))

        def speak() -> dict:
            return measures.speech(load(), examples, judge, evaluation, speech / name)

        def clock() -> dict:
            return measures.clocked(load(), examples, evaluation)

        bits = partial(measures.bits, run_folder, folder, evaluation, configs.section(config, "sharding"))
        drawn = [*held, used["sampling"], judge.fingerprint]
        return (
            stages.run(f"likelihood-{name}", bits, *held, after=after)
            | stages.run(f"speech-{name}", speak, *drawn, after=after)
            | stages.run(f"speed-{name}", clock, *drawn, after=after)
        )

    trained = {name: stages.kept[f"train-{name}"]["result"] for name in shares}
    strategies = [{"name": name} | share | trained[name] | measure(name) for name, share in shares.items()]
    splits = metadata["splits"].items()
    results = {
        **environment(command),
        "schema": report.schema.VERSION,
        "title": "Orders on the codec grid, compared",
        "question": "In which order should a language model predict the codes of speech?",
        "config": config.to_dict(),
        "config_hash": digest(config.to_dict()),
        "corpus": {
            "name": config.corpus.name,
            "speakers": corpus["speakers"],
            "utterances": {split: found["utterances"] for split, found in splits},
            "hours": {split: found["seconds"] / 3600 for split, found in splits},
        },
        "codec": {
            "name": metadata["codec"],
            "fingerprint": fingerprint,
            "frame_rate": metadata["frame_rate"],
            "codebooks": vocab.codebooks,
            "codebook_size": vocab.codebook_size,
            "sample_rate": metadata["sample_rate"],
        },
        "recogniser": {"fingerprint": judge.fingerprint},
        "baselines": baselines,
        "sentences": [{key: example[key] for key in ("text", "speaker")} for example in examples[: evaluation.heard]],
        "ceilings": ceilings,
        "strategies": strategies,
        "notes": notes(config),
    }
    grids = {name: configs.section(part, "serialization") for name, part in parts.items()}
    pictures = {name: picture.svg(serialization.bind(grid, vocab.codebooks)) for name, grid in grids.items()}
    path = report.write_report(results, workdir, pictures)
    print(f"\n{table(results)}\n\n{stages.table()}\n\nreport: {Path(path).resolve()}", flush=True)
    return path


def describe_corpus(utterances: list) -> dict:
    return {"utterances": len(utterances), "speakers": len({item.speaker for item in utterances})}


def train(config: ConfigDict, folder: Path, workdir: Path, progress: bool) -> dict:
    """Trains one run and tells how it went."""
    runs.train(config, folder, workdir, progress=progress)
    frame_rate = tokens.info(folder / "tokens")["frame_rate"]
    return {
        "training_seconds": measures.training_log(workdir)[-1]["seconds"],
        "training_curve": measures.training_curve(workdir, frame_rate),
    }


def variants(config: ConfigDict, codebooks: int) -> dict[str, ConfigDict]:
    """The configuration of each strategy: its name, and those of the set options that it has a use for.

    Raises InputError for an option that none of them accepts.
    """
    default = dataclasses.asdict(SerializationConfig())
    options = {k: v for k, v in config.serialization.items() if k != "strategy" and v != default[k]}
    found, refused = {}, dict.fromkeys(options)
    for name in config.compare.strategies:
        accepted = {"strategy": name}
        for option, value in options.items():
            try:
                serialization.bind(SerializationConfig(**accepted, **{option: value}), codebooks)
                accepted[option] = value
                refused.pop(option, None)
            except InputError as refusal:
                if option in refused:
                    refused[option] = refusal
        found[name] = config.copy_and_resolve_references()
        found[name].serialization.update({**default, **accepted})
    if refused:
        raise next(iter(refused.values()))
    return found


def equal_shares(config: ConfigDict, vocab: Vocab, frame_rate: float) -> dict[str, dict[str, Any]]:
    """Per strategy its parameters, training steps and FLOPs, equal within compare.tolerance.

    Raises InputError if they are not.
    """
    compare, model = configs.section(config, "compare"), configs.section(config, "model")
    shares = {}
    for name, part in variants(config, vocab.codebooks).items():
        flops = cost.training_flops_per_step(model, vocab, part.data.batch_size, part.data.sequence_length)
        steps = max(1, round(compare.flops / flops)) if compare.flops else part.training.steps
        grid = serialization.bind(configs.section(part, "serialization"), vocab.codebooks)
        shares[name] = {
            "parameters": count_parameters(model, vocab),
            "training_steps": steps,
            "training_flops": float(steps * flops),
            "positions_per_second": positions_per_second(grid, frame_rate),
        }
    for key in ("parameters", "training_flops"):
        values = {name: share[key] for name, share in shares.items()}
        low, high = min(values, key=values.get), max(values, key=values.get)
        if values[high] > (1 + compare.tolerance) * values[low]:
            raise InputError(
                f"compare: {high} has {values[high]:.4g} {key} and {low} has {values[low]:.4g}; they may differ by "
                f"compare.tolerance={compare.tolerance:g} of the smaller number"
            )
    return shares


def count_parameters(model: ModelConfig, vocab: Vocab) -> int:
    """Numbers in the parameters of a model, counted on shapes."""
    with jax.set_mesh(sharding.single_device_mesh()):
        shapes = jax.eval_shape(lambda: nnx.state(Transformer(model, vocab.size, nnx.Rngs(0)), nnx.Param))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def positions_per_second(grid: Grid, frame_rate: float, seconds: float = 10.0) -> float:
    """Positions of the longest training row that one second of audio takes, in a segment of `seconds`."""
    frames = round(seconds * frame_rate)
    rows = cost.training_rows(grid, frames, prompt=1).values()
    return max(work.positions - 1 for work in rows) * frame_rate / frames


def environment(command: str) -> dict[str, Any]:
    """With which command, code and machine."""
    repository, commit = Path(__file__).resolve().parent.parent, "unknown"
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


def notes(config: ConfigDict) -> list[str]:
    """What a reader must know to read the numbers."""
    found = []
    found.append(
        "Equal training compute: every strategy takes the same number of steps on batches of the same shape. A "
        "strategy that spends more positions on a second of speech has therefore seen fewer seconds of it."
    )
    if config.corpus.name == "synthetic":
        found.append(
            "Synthetic speech is far easier than recordings of people: the numbers compare strategies under equal "
            "conditions and say nothing about quality in the wild."
        )
    if "masked" in config.compare.strategies:
        found.append(
            "The likelihood of masked is an upper bound on its bits (any order of the cells within a codebook), with "
            "its standard error: sampling by confidence has no likelihood that can be computed."
        )
    return found


def table(results: dict) -> str:
    """The main numbers as text."""
    ceilings, rows = results["ceilings"], []
    for found in results["strategies"]:
        sign = "<=" if found["likelihood"] == "bound" else "  "
        rows.append(
            f"   {found['name']:13s} {sign}{found['bits_per_second']:7.1f} +- {found['bits_per_second_se']:5.1f}"
            f" {found['cer']['value']:8.3f} {found['speed']['rtf']:8.3f} {found['cost']['measured_passes']:8d}"
            f" {found['speed']['first_audio_seconds']:10.3f}"
        )
    return "\n".join(
        [
            f"   {'strategy':13s} {'bits per second':>17s} {'CER':>8s} {'RTF':>8s} {'passes':>8s} {'first s':>10s}",
            *rows,
            f"   {'unigram':13s}   {results['baselines']['unigram_bits_per_second']:7.1f}",
            f"   {'uniform':13s}   {results['baselines']['uniform_bits_per_second']:7.1f}",
            f"   {'recordings':13s} {'':17s} {ceilings['real']['cer']['value']:8.3f}",
            f"   {'through codec':13s} {'':17s} {ceilings['codec']['cer']['value']:8.3f}",
        ]
    )
