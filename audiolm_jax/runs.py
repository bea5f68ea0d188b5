"""From a configuration to prepared data and to a trained run: what `audiolm prepare` and `audiolm train` do.

DATA                     see data/prepare.py
RUN/config.json          what was trained, RUN/checkpoints, RUN/metrics.jsonl, RUN/tensorboard (training/loop.py)
"""

import contextlib
from functools import partial
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from audiolm_jax import codecs, files
from audiolm_jax import config as configs
from audiolm_jax.data import batches as data
from audiolm_jax.data import prepare as recordings
from audiolm_jax.data import tokens
from audiolm_jax.data.examples import make_vocab
from audiolm_jax.errors import InputError
from audiolm_jax.families import finetune, musicgen
from audiolm_jax.model.sharding import make_mesh
from audiolm_jax.model.spec import CodecSpec, Spec
from audiolm_jax.model.transformer import Transformer
from audiolm_jax.sampling import generator as generate
from audiolm_jax.serialization.vocab import Vocab
from audiolm_jax.training import loop, processes
from audiolm_jax.training.step import SCRATCH

SPOKEN = 2  # sentences in a probe


def prepare(config: ConfigDict, directory: Path, progress: bool = True) -> dict:
    """`data.prepare` of a configuration that may start from a published checkpoint, which then decides the codec."""
    return recordings.prepare(finetune.configured(config), directory, progress)


def spec_of(config: ConfigDict, metadata: dict, base: finetune.Base | None = None) -> Spec:
    """The model that `config` describes, on tokens with this `metadata` (`tokens.info`)."""
    codec = CodecSpec(**{**config.codec.to_dict(), "fingerprint": metadata["codec_fingerprint"]})
    spec = Spec(
        configs.section(config, "model"),
        vocabulary(config, metadata) if base is None else base.vocab,
        configs.section(config, "serialization"),
        data=configs.section(config, "data"),
        codec=codec,
        tokens=metadata["fingerprint"],
    )
    return spec if base is None else base.describe(spec)


def vocabulary(config: ConfigDict, metadata: dict) -> Vocab:
    return make_vocab(metadata, configs.section(config, "data"))


def train(config: ConfigDict, directory: Path, workdir: Path, progress: bool = True) -> None:
    """Trains the run `workdir` on the tokens below `directory`, or goes on with it.

    Raises InputError if there are no tokens, or those of another codec, or `workdir` is another run.
    """
    config = finetune.configured(config)
    base = finetune.open_base(config)
    if base is not None and files.remote(workdir):
        raise InputError(f"--workdir={workdir}: a fine-tuned run keeps its codec beside it; name a local folder")
    for name, off in (("cross_width", 0), ("state_widths", ())):
        if config.model[name] != off and base is None:
            raise InputError(
                f"model.{name}={config.model[name]}: tokens hold no states of an encoder to train with; leave it at "
                f"{off}, or start from an imported checkpoint (finetune.base)"
            )
    codec = codecs.load(**config.codec)
    source = tokens.open_split(directory / "tokens", "train", codec.fingerprint)
    spec = spec_of(config, source.metadata, base)
    grid = spec.grid
    run = loop.Run(
        configs.section(config, "training"),
        configs.section(config, "optimizer"),
        configs.section(config, "sharding"),
        config.seed,
        source.metadata["frame_rate"],
    )
    rows, accumulate, lanes = spec.data.batch_size, run.training.accumulate, spec.data.lanes
    columns = processes.columns(make_mesh(run.sharding), run.sharding.rules, rows, accumulate, lanes)
    view = None if base is None else base.view(source, spec.data, grid, config.seed)
    batches = data.training_batches(source, spec.data, grid, spec.vocab, config.seed, accumulate, columns, view)
    probe = partial(speak, spec=spec) if base is None else partial(play, spec=spec, base=base)
    with contextlib.closing(batches):
        loop.train(
            workdir,
            batches,
            spec,
            run,
            adapter=SCRATCH if base is None else base,
            probe=partial(probe, config, directory, codec),
            progress=progress,
        )


def held_out(directory: Path, codec: Any) -> tokens.TokenSplit:
    """What probes take their texts from: the split "valid" where there is one."""
    splits = tokens.info(directory / "tokens")["splits"]
    return tokens.open_split(directory / "tokens", "valid" if "valid" in splits else "train", codec.fingerprint)


def speak(config: ConfigDict, directory: Path, codec: Any, step: int, model: Transformer, spec: Spec) -> dict:
    """A probe of training: the first held-out sentences, spoken by the model as it is; name -> (samples, Hz).

    A recording without text is continued from its first half.
    """
    source, sampling = held_out(directory, codec), configs.section(config, "sampling")
    generator = generate.Generator(model, spec, codec, sampling, spec.data.sequence_length)
    examples = data.evaluation_examples(source, spec.data, spec.vocab, SPOKEN)
    texts = [example["text"] if spec.data.template else "" for example in examples]
    results = generator.generate(
        texts,
        speakers=[example["speaker"] for example in examples],
        prompts=[
            None if text else example["codes"][: len(example["codes"]) // 2]
            for text, example in zip(texts, examples, strict=True)
        ],
    )
    return {f"speech/{n}": (result.waveform, result.sample_rate) for n, result in enumerate(results)}


def play(
    config: ConfigDict,
    directory: Path,
    codec: Any,
    step: int,
    model: Transformer,
    spec: Spec,
    base: finetune.Base,
) -> dict:
    """A probe of fine-tuning: music for the texts of the first held-out recordings, as long as these, at most a row of
    a batch."""
    source, sampling = held_out(directory, codec), configs.section(config, "sampling")
    conditioning = musicgen.Conditioning(base.text_encoder)
    generator = generate.Generator(model, spec, codec, sampling, conditioning=conditioning)
    heads = [source.head(index) for index in range(min(SPOKEN, len(source)))]
    longest = min(spec.vocab.max_frames, spec.data.sequence_length)
    frames = [min(head["frames"], longest) for head in heads]
    results = generator.generate([head["text"] for head in heads], frames=frames)
    return {f"music/{n}": (result.waveform, result.sample_rate) for n, result in enumerate(results)}
