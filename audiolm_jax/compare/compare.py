"""Serialization strategies under equal conditions: same speech, codec, backbone, parameters, and compute or audio.

A comparison is a grid of cells, one training run for each strategy, size and seed (cells.py). Every stage keeps its
result in the workdir (stages.py), and what a stage makes on the way survives being killed, so that the same command
again goes on where it was stopped and ends with the same numbers. Several processes may run the same command on the
same workdir at the same time, also from several machines: they share the cells (claims.py).

    WORKDIR/config.json            what is compared; another configuration is refused
    WORKDIR/data/                  corpus and tokens
    WORKDIR/runs/CELL/             one training run each, with its own stages/ and the lock of whoever works on it
    WORKDIR/speech/                recordings, the same after the codec, and what was spoken, as wav files
    WORKDIR/stages/  locks/        one result per stage, and claims, of what all cells have in common
    WORKDIR/results.json           all numbers (report/schema.py)
    WORKDIR/report.html            the page
"""

import dataclasses
import functools
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from audiolm_jax import codecs, loading, runs, serialization
from audiolm_jax import config as configs
from audiolm_jax import locks as claims
from audiolm_jax.compare import budget as shares
from audiolm_jax.compare import cells, report, results
from audiolm_jax.compare.cells import Cell
from audiolm_jax.compare.stages import Stages, timetable
from audiolm_jax.data import tokens
from audiolm_jax.encoders import recogniser
from audiolm_jax.evaluation import run as measures
from audiolm_jax.evaluation import speed
from audiolm_jax.serialization import picture
from audiolm_jax.serialization.vocab import Vocab
from audiolm_jax.training import workdir as workdirs


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What the stages of all cells have in common."""

    config: ConfigDict
    workdir: Path
    judge: recogniser.Recogniser
    stages: Stages  # of corpus, tokens, baselines and ceilings
    progress: bool = True

    @property
    def data(self) -> Path:
        return self.workdir / "data"

    def used(self, *names: str) -> list[Any]:
        """Sections as plain values: the inputs of stages."""
        return [self.config[name].to_dict() for name in names]

    @functools.cached_property
    def recordings(self) -> list:
        return runs.utterances(self.config, self.data, self.progress)


def run(config: ConfigDict, workdir: Path, command: str = "", progress: bool = True) -> Path:
    """All stages that no other process has done or is doing, then the report; returns its path.

    Raises InputError for a workdir of another configuration, strategies that cannot have equal shares, and for
    whatever the stages refuse.
    """
    judge = measures.load_judge(configs.section(config, "evaluation"))  # a missing one is told before the training
    comparison = Comparison(config, workdir, judge, Stages(workdir / "stages"), progress)
    locks, found = workdir / "locks", {}
    claims.share({"config": locks / "config"}, lambda _: workdirs.claim(workdir, config.to_dict()))
    claims.share({"data": locks / "data"}, lambda _: prepare(comparison))

    metadata = tokens.info(comparison.data / "tokens")
    vocab = runs.vocabulary(config, metadata)
    parts = cells.variants(config, vocab.codebooks)
    source = tokens.open_split(comparison.data / "tokens", "train", metadata["codec_fingerprint"])
    seen = shares.documents(source, configs.section(config, "data"), vocab)
    budget = shares.equal_shares(config, parts, vocab, metadata["frame_rate"], seen)
    plan = cells.plan(config, parts, budget)
    print(results.budget_table(plan, budget, config.compare.equal, metadata["frame_rate"]), flush=True)

    examples = held_out(comparison, vocab, metadata["codec_fingerprint"])
    by_name = {cell.name: cell for cell in plan}
    seconds = {}

    def work(name: str) -> None:
        if name == "references":
            references(comparison, examples, metadata["codec_fingerprint"])
        else:
            found[name], seconds[name] = measured(comparison, by_name[name], examples)

    tasks = {"references": locks / "references"} | {name: workdir / "runs" / name / "lock" for name in by_name}
    claims.share(tasks, work)

    about = described(comparison, metadata, vocab, examples)
    numbers = results.assemble(config, command, about, plan, budget, found)
    grids = {cell.strategy: configs.section(cell.config, "serialization") for cell in plan}
    pictures = {name: picture.svg(serialization.bind(grid, vocab.codebooks)) for name, grid in grids.items()}
    claims.share({"results": locks / "results"}, lambda _: report.write_report(numbers, workdir, pictures))
    path = workdir / "report.html"
    spent = timetable(comparison.stages.seconds() | seconds)
    print(f"\n{results.table(numbers)}\n\n{spent}\n\nreport: {path.resolve()}", flush=True)
    return path


def prepare(comparison: Comparison) -> None:
    """Corpus and tokens."""
    config, stages = comparison.config, comparison.stages
    stages.run("corpus", lambda: describe_corpus(comparison.recordings), *comparison.used("corpus"))
    make = partial(runs.prepare, config, comparison.data, comparison.progress)
    stages.run("tokens", make, *comparison.used("codec", "tokens"), after=["corpus"])


def describe_corpus(utterances: list) -> dict:
    return {"utterances": len(utterances), "speakers": len({item.speaker for item in utterances})}


def held_out(comparison: Comparison, vocab: Vocab, fingerprint: str) -> list[dict]:
    """The sentences that are spoken and heard."""
    section, evaluation = (configs.section(comparison.config, name) for name in ("data", "evaluation"))
    return measures.held_out(comparison.data, section, evaluation, vocab, fingerprint, evaluation.sentences)


def references(comparison: Comparison, examples: Sequence[dict], fingerprint: str) -> None:
    """What models are compared with: codes without a network, recordings, recordings after the codec."""
    config, stages, judge = comparison.config, comparison.stages, comparison.judge
    section, evaluation = configs.section(config, "data"), configs.section(config, "evaluation")
    used = comparison.used("evaluation", "data")
    counted = partial(measures.unigram, comparison.data, section, evaluation, fingerprint)
    stages.run("baselines", counted, *used, after=["tokens"])

    def listen() -> dict:
        codec, folder = codecs.load(**config.codec), comparison.workdir / "speech"
        return measures.ceilings(comparison.recordings, examples, codec, judge, evaluation, folder)

    stages.run("ceilings", listen, *used, judge.fingerprint, after=["tokens"])


def measured(comparison: Comparison, cell: Cell, examples: Sequence[dict]) -> tuple[dict, float]:
    """Trains and measures one cell, as far as that is not done: everything that was found, and the seconds it took."""
    config, judge, workdir = comparison.config, comparison.judge, comparison.workdir
    folder, evaluation = workdir / "runs" / cell.name, configs.section(config, "evaluation")
    stages = Stages(folder / "stages", f"{cell.name}/")
    load = functools.cache(partial(loading.load, folder, configs.section(config, "sampling")))
    parts = [cell.config.to_dict()[k] for k in ("data", "serialization", "model", "optimizer", "training", "seed")]
    held = comparison.used("evaluation", "data")
    drawn = [*held, *comparison.used("sampling"), judge.fingerprint]

    def speak() -> dict:
        return measures.speech(load(), examples, judge, evaluation, workdir / "speech" / cell.name)

    make = partial(train, cell.config, comparison.data, folder, comparison.progress)
    bits = partial(
        measures.bits, folder, comparison.data, evaluation=evaluation, shards=configs.section(config, "sharding")
    )
    others = {
        split: partial(bits, evaluation=dataclasses.replace(evaluation, split=split)) for split in evaluation.also
    }
    tokens_made = comparison.stages.kept["tokens"]["digest"]
    found = stages.run("train", make, *parts, tokens_made) | stages.run("likelihood", bits, *held, after=["train"])
    found |= stages.run("speech", speak, *drawn, after=["train"])
    found |= stages.run("speed", lambda: measures.clocked(load(), examples, evaluation), *drawn, after=["train"])
    found["also"] = {
        split: stages.run(f"likelihood-{split}", measure, *held, after=["train"]) for split, measure in others.items()
    }
    return found, sum(stages.seconds().values())


def train(config: ConfigDict, folder: Path, workdir: Path, progress: bool) -> dict:
    """Trains one run and tells how it went."""
    runs.train(config, folder, workdir, progress=progress)
    log, machine = measures.training_log(workdir), speed.hardware()
    return {
        "training_seconds": log[-1]["seconds"],
        "training_frames": sum(line["frames"] for line in log),
        "training_curve": measures.training_curve(workdir, tokens.info(folder / "tokens")["frame_rate"]),
        "hardware": {key: machine[key] for key in ("processor", "devices")},
    }


def described(comparison: Comparison, metadata: dict, vocab: Vocab, examples: Sequence[dict]) -> dict:
    """The parts of the results that all cells share."""
    config, splits = comparison.config, metadata["splits"].items()
    kept = {name: stage["result"] for name, stage in comparison.stages.kept.items()}
    return {
        "corpus": {
            "name": config.corpus.name,
            "speakers": kept["corpus"]["speakers"],
            "utterances": {split: found["utterances"] for split, found in splits},
            "hours": {split: found["seconds"] / 3600 for split, found in splits},
        },
        "codec": {
            "name": metadata["codec"],
            "fingerprint": metadata["codec_fingerprint"],
            "frame_rate": metadata["frame_rate"],
            "codebooks": vocab.codebooks,
            "codebook_size": vocab.codebook_size,
            "sample_rate": metadata["sample_rate"],
        },
        "recogniser": {"fingerprint": comparison.judge.fingerprint},
        "baselines": kept["baselines"],
        "sentences": [
            {key: example[key] for key in ("text", "speaker")} for example in examples[: config.evaluation.heard]
        ],
        "ceilings": {name: {key: one[key] for key in ("cer", "samples")} for name, one in kept["ceilings"].items()},
    }
