"""From a configuration to prepared data and to a trained run: what `audiolm prepare` and `audiolm train` do.

DATA                     see data/prepare.py
RUN/config.json          what was trained, RUN/checkpoints, RUN/metrics.jsonl, RUN/tensorboard (training/loop.py)
"""

import contextlib
import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from audiolm_jax import codecs, files
from audiolm_jax import config as configs
from audiolm_jax.data import batches, tokens
from audiolm_jax.data import prepare as recordings
from audiolm_jax.data.config import DataConfig
from audiolm_jax.data.examples import make_vocab
from audiolm_jax.errors import InputError
from audiolm_jax.families.config import configured
from audiolm_jax.model.sharding import make_mesh
from audiolm_jax.model.spec import CodecSpec, Spec, model_of
from audiolm_jax.model.transformer import Transformer
from audiolm_jax.sampling.generator import Generator
from audiolm_jax.serialization import pieces
from audiolm_jax.serialization.text import Texts
from audiolm_jax.training import loop, processes
from audiolm_jax.training.start import Start
from audiolm_jax.training.step import SCRATCH

if TYPE_CHECKING:
    from audiolm_jax.families.finetune import Base

LISTED = 2000  # speakers, at most, that a checkpoint names
PROBED = 2  # recordings whose texts a probe takes


def prepare(config: ConfigDict, directory: Path, progress: bool = True) -> dict:
    """`data.prepare` of a configuration that may start from a published checkpoint, which then decides the codec."""
    return recordings.prepare(configured(config), directory, progress)


def spec_of(config: ConfigDict, metadata: dict, text: Texts, base: "Base | None" = None) -> Spec:
    """The model that `config` describes, on tokens with this `metadata` (`tokens.info`) and this text vocabulary."""
    codec = CodecSpec(**{**config.codec.to_dict(), "fingerprint": metadata["codec_fingerprint"]})
    order = configs.section(config, "serialization")
    data = configs.section(config, "data")
    vocab = base.vocab if base else make_vocab(metadata, data, text.size, config.text.given)
    spec = Spec(
        model_of(config, order, vocab),
        vocab,
        order,
        data=data,
        codec=codec,
        tokens=metadata["fingerprint"],
        text=text.spec,
    )
    return spec if base is None else base.describe(spec)


def speakers(source: tokens.TokenSplit, data: DataConfig) -> tuple[str, ...]:
    """The names of the speakers in a split, sorted; () if the template names none, or there are too many to list."""
    if "{speaker}" not in data.template:
        return ()
    names = {source.head(index)["speaker"] for index in range(len(source))} - {""}
    return tuple(sorted(names)) if len(names) <= LISTED else ()


def train(config: ConfigDict, directory: Path, workdir: Path, progress: bool = True) -> None:
    """Trains the run `workdir` on the tokens below `directory`, or goes on with it.

    Raises InputError if there are no tokens, or those of another codec, or `workdir` is another run.
    """
    config, base = configured(config), None
    if config.finetune.base:
        from audiolm_jax.families import finetune  # late: other runs need no family

        base = finetune.open_base(config)
        if files.remote(workdir):
            raise InputError(f"--workdir={workdir}: a fine-tuned run keeps its codec beside it; name a local folder")
    for name, off in (("cross_width", 0), ("state_widths", ())):
        if config.model[name] != off and base is None:
            raise InputError(
                f"model.{name}={config.model[name]}: tokens hold no states of an encoder to train with; leave it at "
                f"{off}, or start from an imported checkpoint (finetune.base)"
            )
    codec = codecs.load(**config.codec)
    text = pieces.of_config(configs.section(config, "text"), directory) if base is None else base.text
    source = tokens.open_split(directory / "tokens", "train", codec.fingerprint, text)
    spec = spec_of(config, source.metadata, text, base)
    spec = dataclasses.replace(spec, speakers=speakers(source, spec.data))
    run = loop.Run(
        configs.section(config, "training"),
        configs.section(config, "optimizer"),
        configs.section(config, "sharding"),
        config.seed,
        source.metadata["frame_rate"],
    )
    accumulate, mesh, grid = run.training.accumulate, make_mesh(run.sharding), spec.grid
    columns = processes.columns(mesh, run.sharding.rules, spec.data.batch_size, accumulate, spec.data.lanes)
    view = None if base is None else base.view(source, spec.data, grid, config.seed)
    rows = batches.training_batches(source, spec.data, grid, spec.vocab, config.seed, accumulate, columns, view)
    adapter = base or (Start(run.training.init_from, spec) if run.training.init_from else SCRATCH)
    probe = partial(sound, config, directory, codec, base, spec=spec, text=text)
    evaluate = validation(config, directory, base, spec, text) if run.training.evaluate_every else None
    hooks = loop.Hooks(probe, evaluate, text.keep)
    with contextlib.closing(rows):
        loop.train(workdir, rows, spec, run, adapter=adapter, hooks=hooks, progress=progress)


def validation(
    config: ConfigDict, directory: Path, base: "Base | None", spec: Spec, text: Texts
) -> Callable[[Transformer], dict[str, float]]:
    """The function that `training.evaluate_every` calls: model -> its bits per second on the split valid.

    Raises InputError if there is no such split.
    """
    from audiolm_jax.evaluation import evaluate  # late: other runs do not need it

    evaluation = dataclasses.replace(configs.section(config, "evaluation"), split="valid")
    examples, rate = evaluate.held_out(directory, evaluation, spec), tokens.info(directory / "tokens")["frame_rate"]
    encoder = None if base is None else base.text_encoder

    def bits(model: Transformer) -> dict[str, float]:
        scored = evaluate.scored(model, spec, examples, rate, evaluation, text, encoder, base and base.prompts)
        return {"valid_bits_per_second": scored.bits_per_second}

    return bits


def sound(
    config: ConfigDict,
    directory: Path,
    codec: Any,
    base: "Base | None",
    step: int,
    model: Transformer,
    spec: Spec,
    text: Texts,
) -> dict:
    """A probe of training: audio for the first held-out texts, by the model as it is; name -> (samples, Hz).

    A recording of speech without text is continued from its first half. Music, which has no end of its own, is as long
    as the recording, at most a row of a batch.
    """
    splits = tokens.info(directory / "tokens")["splits"]
    split = "valid" if "valid" in splits else "train"
    source = tokens.open_split(directory / "tokens", split, codec.fingerprint)
    sampling, context = configs.section(config, "sampling"), spec.data.sequence_length
    if base is None or base.text_encoder is None:
        own = base and base.conditioning
        generator, name = Generator(model, spec, codec, sampling, context, conditioning=own), "speech"
        generator.text = text
        examples = batches.evaluation_examples(source, spec.vocab, PROBED)
        words = [example["text"] if spec.data.template else "" for example in examples]
        halves = [example["codes"][: len(example["codes"]) // 2] for example in examples]
        prompts = [None if word else half for word, half in zip(words, halves, strict=True)]
        options = {} if own else {"speakers": [example["speaker"] for example in examples], "prompts": prompts}
    else:
        generator, name = Generator(model, spec, codec, sampling, conditioning=base.conditioning), "music"
        heads = [source.head(index) for index in range(min(PROBED, len(source)))]
        words = [head["text"] for head in heads]
        options = {"frames": [min(head["frames"], spec.vocab.max_frames, context) for head in heads]}
    results = generator.generate(words, **options)
    return {f"{name}/{n}": (result.waveform, result.sample_rate) for n, result in enumerate(results)}
