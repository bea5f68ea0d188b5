"""Serialization strategies under equal conditions: same speech, codec, backbone, parameters, and compute or audio.

A comparison is a grid of cells, one training run for each strategy, size and seed (cells.py). Every stage keeps its
result in the workdir (stages.py), and what a stage makes on the way survives being killed, so that the same command
again resumes and ends with the same numbers. Several processes may run the same command on the same workdir at the same
time, also from several machines: they share the cells (locks.py).

    WORKDIR/config.json            what is compared; another configuration is refused
    WORKDIR/data/                  corpus and tokens
    WORKDIR/runs/CELL/             one training run each, with its own stages/ and the lock of whoever works on it
    WORKDIR/speech/                recordings, the same after the codec, and what was spoken, as wav files
    WORKDIR/stages/  locks/        results and locks of the stages that all cells have in common
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

from audiolm_jax import codecs, loading, locks, runs, serialization
from audiolm_jax import config as configs
from audiolm_jax.compare import budget, cells, report, results
from audiolm_jax.compare.cells import Cell
from audiolm_jax.compare.stages import Stages, timetable
from audiolm_jax.config import section
from audiolm_jax.data import corpora, tokens
from audiolm_jax.data.examples import make_vocab
from audiolm_jax.data.prepare import utterances
from audiolm_jax.encoders import recogniser
from audiolm_jax.errors import InputError
from audiolm_jax.evaluation import evaluate, speed
from audiolm_jax.model.spec import Spec
from audiolm_jax.serialization import picture, pieces
from audiolm_jax.training.loop import claim


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The configuration, judge and results that all cells share."""

    config: ConfigDict
    workdir: Path
    judge: recogniser.Recogniser
    stages: Stages  # of corpus, tokens, baselines and ceilings
    progress: bool = True

    @property
    def data(self) -> Path:
        return self.workdir / "data"

    def sections(self, *names: str) -> list[Any]:
        """Sections of the configuration as plain values, for the inputs of stages."""
        return [self.config[name].to_dict() for name in names]

    @functools.cached_property
    def recordings(self) -> list:
        return utterances(self.config, self.data, self.progress)


def check(config: ConfigDict) -> None:
    """Raises InputError for whatever of a comparison can be seen to fail before anything of it is made."""
    configs.check(config)
    data, evaluation, corpus = (section(config, name) for name in ("data", "evaluation", "corpus"))
    if not evaluate.names_text(data.template):
        raise InputError(f"data.template={data.template} must name {{text}}: a comparison hears what its models speak")
    evaluate.load_judge(evaluation)  # its file may be missing
    codec = codecs.load(**config.codec)
    sizes = {name: getattr(codec, name) for name in ("codebooks", "codebook_size")}
    vocab = make_vocab(sizes, data, pieces.size_of(section(config, "text")))
    budget.check(config, cells.variants(config, vocab.codebooks), vocab)
    if corpus.name == "synthetic":
        splits = [split for split in corpora.SPLITS if getattr(corpus, split)]
    elif corpus.name in corpora.CORPORA:
        splits = sorted({item.split for item in corpora.utterances(corpus, Path(), progress=False)})
    else:
        return  # a module of the user's may make its recordings when it is asked for them
    for key, names in (("split", (evaluation.split,)), ("also", evaluation.also), ("training", ("train",))):
        for name in names:
            if name not in splits:
                key = "the training split" if key == "training" else f"evaluation.{key}"
                raise InputError(f"{key}={name}: the corpus has no such split; it has {', '.join(splits)}")


def run(config: ConfigDict, workdir: Path, command: str = "", progress: bool = True) -> Path:
    """All stages that no other process has done or is doing, then the report; returns its path.

    Raises InputError for whatever `check` and the stages refuse, a workdir of another configuration, strategies that
    cannot have equal shares, and sentences without text.
    """
    check(config)
    judge = evaluate.load_judge(section(config, "evaluation"))
    comparison = Comparison(config, workdir, judge, Stages(workdir / "stages"), progress)
    folder = workdir / "locks"
    locks.share({"config": folder / "config"}, lambda _: claim(workdir, config.to_dict()))
    locks.share({"data": folder / "data"}, lambda _: prepare_data(comparison))

    metadata = tokens.info(comparison.data / "tokens")
    parts = cells.variants(config, make_vocab(metadata, section(config, "data")).codebooks)
    text = pieces.of_config(section(config, "text"), comparison.data)
    spec = runs.spec_of(next(iter(parts.values())), metadata, text)  # all but order and depth network is shared
    rate = metadata["frame_rate"]
    source = tokens.open_split(comparison.data / "tokens", "train", spec.codec.fingerprint, text)
    shares = budget.equal_shares(config, parts, spec.vocab, rate, budget.documents(source, spec.data, spec.vocab))
    schedule = cells.schedule(config, parts, shares)
    print(results.budget_table(schedule, shares, config.compare.equal, rate), flush=True)

    evaluation = section(config, "evaluation")
    examples = evaluate.spoken(comparison.data, evaluation, spec)
    if not examples:
        raise InputError(
            f"{comparison.data}: no recording of the split {evaluation.split!r} has a text to speak and hear; "
            "`audiolm train` and `audiolm evaluate` take recordings without text"
        )
    scored = len(evaluate.held_out(comparison.data, evaluation, spec))
    print(results.interval_table(schedule, scored, len(examples)), flush=True)
    by_name = {cell.name: cell for cell in schedule}
    measured: dict[str, dict] = {}
    seconds: dict[str, float] = {}

    def work(name: str) -> None:
        if name == "references":
            references(comparison, examples, spec)
        else:
            measured[name], seconds[name] = measure(comparison, by_name[name], examples)

    tasks = {"references": folder / "references"} | {name: workdir / "runs" / name / "lock" for name in by_name}
    locks.share(tasks, work)

    shared = shared_results(comparison, metadata, spec, examples)
    numbers = results.assemble(config, command, shared, schedule, shares, measured)
    grids = {cell.strategy: section(cell.config, "serialization") for cell in schedule}
    pictures = {name: picture.svg(serialization.bind(grid, spec.vocab.codebooks)) for name, grid in grids.items()}
    locks.share({"results": folder / "results"}, lambda _: report.write_report(numbers, workdir, pictures))
    path = workdir / "report.html"
    spent = timetable(comparison.stages.seconds() | seconds)
    print(f"\n{results.table(numbers)}\n\n{spent}\n\nreport: {path.resolve()}", flush=True)
    return path


def prepare_data(comparison: Comparison) -> None:
    """Corpus and tokens."""
    config, stages = comparison.config, comparison.stages
    stages.run("corpus", lambda: describe_corpus(comparison.recordings), *comparison.sections("corpus"))
    prepare = partial(runs.prepare, config, comparison.data, comparison.progress)
    stages.run("tokens", prepare, *comparison.sections("codec", "tokens"), after=["corpus"])


def describe_corpus(utterances: list) -> dict:
    return {"utterances": len(utterances), "speakers": len({item.speaker for item in utterances})}


def references(comparison: Comparison, examples: Sequence[dict], spec: Spec) -> None:
    """The references of the models: unigram codes, recordings, and recordings after the codec."""
    config, stages, judge = comparison.config, comparison.stages, comparison.judge
    evaluation, inputs = section(config, "evaluation"), comparison.sections("evaluation", "data")

    def count() -> dict:
        splits = [dataclasses.replace(evaluation, split=split) for split in (evaluation.split, *evaluation.also)]
        numbers, *others = (evaluate.unigram(comparison.data, split, spec) for split in splits)
        also = {split: other["unigram_bits_per_second"] for split, other in zip(evaluation.also, others, strict=True)}
        return numbers | {"also_unigram_bits_per_second": also}

    stages.run("baselines", count, *inputs, after=["tokens"])

    def listen() -> dict:
        codec, folder = codecs.load(**config.codec), comparison.workdir / "speech"
        found = evaluate.ceilings(comparison.recordings, examples, codec, judge, evaluation, folder)
        if found["real"] is None:
            raise InputError(f"a recording of the split {evaluation.split!r} can no longer be read; put it back")
        return found

    stages.run("ceilings", listen, *inputs, judge.fingerprint, after=["tokens"])


def measure(comparison: Comparison, cell: Cell, examples: Sequence[dict]) -> tuple[dict, float]:
    """Trains and measures one cell, skipping finished stages; returns its numbers and the seconds that they took."""
    config, judge, workdir = comparison.config, comparison.judge, comparison.workdir
    folder, evaluation = workdir / "runs" / cell.name, section(config, "evaluation")
    stages = Stages(folder / "stages", f"{cell.name}/")
    load = functools.cache(partial(loading.load, folder, section(config, "sampling")))
    parts = [cell.config.to_dict()[k] for k in ("data", "serialization", "model", "optimizer", "training", "seed")]
    parts.append(comparison.stages.done["tokens"]["digest"])
    inputs = comparison.sections("evaluation", "data")
    audio_inputs = [*inputs, *comparison.sections("sampling"), judge.fingerprint]

    def bits(split: str) -> dict:
        options = dataclasses.replace(evaluation, split=split)
        return evaluate.bits(folder, comparison.data, options, section(config, "sharding"))

    def speak() -> dict:
        return evaluate.speech(load(), examples, judge, evaluation, workdir / "speech" / cell.name)

    train = partial(train_run, cell.config, comparison.data, folder, comparison.progress)
    numbers = stages.run("train", train, *parts)
    numbers |= stages.run("likelihood", partial(bits, evaluation.split), *inputs, after=["train"])
    numbers |= stages.run("speech", speak, *audio_inputs, after=["train"])
    numbers |= stages.run("speed", lambda: evaluate.timed(load(), examples, evaluation), *audio_inputs, after=["train"])
    numbers["also"] = {
        split: stages.run(f"likelihood-{split}", partial(bits, split), *inputs, after=["train"])
        for split in evaluation.also
    }
    return numbers, sum(stages.seconds().values())


def train_run(config: ConfigDict, folder: Path, workdir: Path, progress: bool) -> dict:
    """Trains one run; returns its seconds, frames and curve from the log, and the hardware."""
    runs.train(config, folder, workdir, progress=progress)
    log, machine = [line for line in evaluate.training_log(workdir) if "frames" in line], speed.hardware()
    return {
        "training_seconds": log[-1]["seconds"],
        "training_frames": sum(line["frames"] for line in log),
        "training_curve": evaluate.training_curve(workdir, tokens.info(folder / "tokens")["frame_rate"]),
        "validation_curve": evaluate.validation_curve(workdir),
        "hardware": {key: machine[key] for key in ("processor", "devices")},
    }


def shared_results(comparison: Comparison, metadata: dict, spec: Spec, examples: Sequence[dict]) -> dict:
    """The parts of the results that all cells share."""
    config, splits = comparison.config, metadata["splits"].items()
    stages = {name: stage["result"] for name, stage in comparison.stages.done.items()}
    return {
        "corpus": {
            "name": config.corpus.name,
            "speakers": stages["corpus"]["speakers"],
            "utterances": {name: split["utterances"] for name, split in splits},
            "hours": {name: split["seconds"] / 3600 for name, split in splits},
        },
        "codec": {
            "name": metadata["codec"],
            "fingerprint": metadata["codec_fingerprint"],
            "frame_rate": metadata["frame_rate"],
            "codebooks": spec.vocab.codebooks,
            "codebook_size": spec.vocab.codebook_size,
            "sample_rate": metadata["sample_rate"],
        },
        "recogniser": {"fingerprint": comparison.judge.fingerprint},
        "baselines": stages["baselines"],
        "sentences": [
            {key: example[key] for key in ("text", "speaker")} for example in examples[: config.evaluation.heard]
        ],
        "ceilings": {name: {key: part[key] for key in ("cer", "samples")} for name, part in stages["ceilings"].items()},
    }
