"""Small real files of every kind that the package reads, and what reads them: KINDS, name -> Kind.

A reader takes the folder of an artefact, reads all of it as the product does, and returns bytes that tell two contents
apart.
"""

import argparse
import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import soundfile

import audiolm_jax
from audiolm_jax import codecs, runs
from audiolm_jax import config as configs
from audiolm_jax.cli import codec as codec_files
from audiolm_jax.codecs import default
from audiolm_jax.codecs.encodec import EnCodecConfig
from audiolm_jax.compare.stages import Stages
from audiolm_jax.data import corpora, tokens
from audiolm_jax.data.corpora import CorpusConfig
from audiolm_jax.encoders import recogniser, t5
from audiolm_jax.errors import InputError
from audiolm_jax.families import finetune, published
from audiolm_jax.model import checkpoints
from audiolm_jax.training import loop, metrics
from experiments.colab import random_musicgen

SMALL = [
    "corpus.train=6",
    "corpus.valid=2",
    "corpus.test=2",
    "corpus.unseen=1",
    "model.layers=1",
    "model.width=32",
    "model.heads=1",
    "model.head_width=32",
    "model.ffn=32",
    "training.steps=2",
    "training.checkpoint_every=2",
    "training.log_every=1",
    "tokens.shard_utterances=4",
]
CHUNKED = EnCodecConfig(
    **random_musicgen.SEANET,
    sampling_rate=600,
    target_bandwidths=(2.0,),
    use_causal_conv=False,
    norm_type="time_group_norm",
    normalize=True,
    chunk_length_s=0.5,
    overlap=0.01,
)


@dataclasses.dataclass(frozen=True)
class Kind:
    """make: fills a folder. read: see above. inputs: share of the campaign, by what reading takes."""

    make: Callable[[Path], None]
    read: Callable[[Path], bytes]
    inputs: int


def digest(*values: Any) -> bytes:
    """Of arrays, text and what prints itself."""
    hashed = hashlib.sha256()
    for value in values:
        array = isinstance(value, np.ndarray | jax.Array)
        hashed.update(np.asarray(value).tobytes() if array else repr(value).encode("utf-8", "backslashreplace"))
    return hashed.digest()


@functools.cache
def config() -> Any:
    return configs.load("tiny", SMALL)


def base() -> Path:
    """A folder with tokens, a run on them, its export, a MusicGen and its import (`make_base`)."""
    return Path(os.environ["MALFORMED_BASE"])


def make_base(root: Path) -> None:
    """Makes the folder that `base` names, in this process and those that it starts."""
    os.environ["MALFORMED_BASE"] = str(root)
    root.mkdir(parents=True)
    runs.prepare(config(), root / "data", progress=False)
    runs.train(config(), root / "data", root / "run", progress=False)
    checkpoints.export_safetensors(root / "run", root / "model.safetensors")
    random_musicgen.write(root / "musicgen")
    published.import_run(root / "musicgen", root / "imported")


def copied(*names: str) -> Callable[[Path], None]:
    """Makes a folder of those entries of `base`; what is of a run stays in a folder `run`."""

    def make(folder: Path) -> None:
        for name in names:
            source = base() / name
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)

    return make


def params(model: Any) -> list:
    return jax.tree.leaves(checkpoints.params_of(model))


def read_tokens(folder: Path) -> bytes:
    known, seen = tokens.info(folder / "data/tokens"), []
    for split in known["splits"]:
        examples = tokens.open_split(folder / "data/tokens", split)
        runs.spec_of(config(), examples.metadata, examples.text)
        for index in range(len(examples)):
            example = examples[index]
            seen += [examples.head(index), example["words"], example["duration"], example["codes"]]
    return digest(known["fingerprint"], *seen)


def of_config() -> dict:
    """What `loop.train` claims the workdir of `base` with."""
    return json.loads((base() / "run" / "config.json").read_text())


def read_workdir(folder: Path) -> bytes:
    loop.claim(folder / "run", of_config())
    metrics.truncate(folder / "run" / "metrics.jsonl", 1)
    return digest((folder / "run" / "metrics.jsonl").read_bytes())


def read_checkpoint(folder: Path) -> bytes:
    model, spec = checkpoints.restore_params(folder / "run")
    return digest(spec, spec.grid, *params(model))


def read_resumed(folder: Path) -> bytes:
    """The run of `base` goes on: the state is read, and nothing is left to do."""
    runs.train(config(), base() / "data", folder / "run", progress=False)
    return b""


def read_export(folder: Path) -> bytes:
    generator = audiolm_jax.load(folder / "model.safetensors")
    generator.request("one two", frames=3)
    return digest(generator.vocab, generator.data_config, *params(generator.model))


def read_musicgen(folder: Path) -> bytes:
    read = published.read(folder / "musicgen")
    generator = read.generator()
    generator.request("slow jazz", frames=3)
    ids = t5.token_ids(read.text_encoder.tokenizer, read.encoder.config.vocab_size, "slow jazz with a loud piano")
    return digest(read.spec, ids, *params(read.model), *jax.tree.leaves(read.codec.config[1:]))


def read_tokenizer(folder: Path) -> bytes:
    tokenizer = t5.read_tokenizer(folder / "musicgen" / t5.TOKENIZER)
    return digest(t5.token_ids(tokenizer, 16, "slow jazz with a loud piano"))


def read_base(folder: Path) -> bytes:
    started = configs.load("finetune_musicgen", [f"finetune.base={folder / 'imported'}"])
    return digest(finetune.configured(started).model.to_dict(), finetune.open_base(started).spec)


def make_codec(settings: EnCodecConfig) -> Callable[[Path], None]:
    return lambda folder: random_musicgen.write_encodec(folder, settings)


def read_codec(folder: Path) -> bytes:
    codec = codecs.load("encodec", folder)
    return digest(codec.fingerprint, codec.codebooks, codec.hop, codec.frame_rate, codec.samples(7), codec.frames(999))


def make_default(folder: Path) -> None:
    shutil.copy(default.WEIGHTS, folder / "model.safetensors")


def read_default(folder: Path) -> bytes:
    codec = codecs.load("default", folder / "model.safetensors")
    return digest(codec.fingerprint, codec.codebooks, codec.hop)


def make_codes(folder: Path) -> None:
    codec = codecs.load("tiny", None, 3)
    for name, seed in (("one", 0), ("two", 1)):
        soundfile.write(folder / f"{name}.wav", random_musicgen.sound(seed, 4000), 16000)
        codec_files.encode(folder / f"{name}.wav", folder / f"{name}.npz", codec, None, lambda _: None)
        (folder / f"{name}.wav").unlink()


def read_codes(folder: Path) -> bytes:
    path = folder / "one.npz"
    options = argparse.Namespace(action="decode", files=[path], codec=None, path=None, codebooks=None)
    problems = codec_files.convert(options, folder)
    if problems:
        raise InputError("; ".join(problems))
    content = codec_files.load_codes(path)
    codec_files.describe(path, codecs.load("tiny"))
    return digest(content["codes"], (folder / "one.wav").read_bytes())


def make_recordings(folder: Path) -> None:
    lines = []
    for n in range(3):
        soundfile.write(folder / f"c{n}.wav", random_musicgen.sound(n, 8000), 16000)
        lines.append({"path": f"c{n}.wav", "text": f"number {n}", "speaker": "a", "words": [["number", 0.0, 0.2]]})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def make_table(folder: Path) -> None:
    make_recordings(folder)
    (folder / "manifest.jsonl").unlink()
    (folder / "metadata.csv").write_text("".join(f"c{n}|number {n}|number {n}\n" for n in range(3)))
    (folder / "c0.txt").write_text("number")


def read_recordings(folder: Path) -> bytes:
    seen, settings = [], CorpusConfig(name="folder", path=str(folder))
    for item in corpora.utterances(settings, folder, False):
        try:
            seen += [item.key, item.text, item.load()[0]]
        except corpora.Reject:
            seen += [item.key, "rejected"]
    return digest(*seen)


def make_recogniser(folder: Path) -> None:
    for suffix in (".safetensors", ".json"):
        shutil.copy(recogniser.WEIGHTS.with_suffix(suffix), folder / f"model{suffix}")


def read_recogniser(folder: Path) -> bytes:
    return digest(recogniser.load(folder / "model.safetensors").fingerprint)


def make_stage(folder: Path) -> None:
    read_stage(folder)


def read_stage(folder: Path) -> bytes:
    with contextlib.redirect_stdout(io.StringIO()):
        return digest(Stages(folder).run("one", lambda: {"a": [1, 2]}, {"b": 3}))


def make_configuration(folder: Path) -> None:
    shutil.copy(configs.find("tiny"), folder / "mine.py")


def read_configuration(folder: Path) -> bytes:
    loaded = configs.load(str(folder / "mine.py"))
    configs.check(loaded)
    return digest(loaded.to_dict())


KINDS = {
    "tokens": Kind(copied("data/tokens"), read_tokens, 700),
    "workdir": Kind(copied("run/config.json", "run/metrics.jsonl"), read_workdir, 700),
    "checkpoint": Kind(copied("run/checkpoints"), read_checkpoint, 300),
    "resumed": Kind(copied("run"), read_resumed, 100),
    "export": Kind(copied("model.safetensors"), read_export, 700),
    "musicgen": Kind(copied("musicgen"), read_musicgen, 300),
    "tokenizer": Kind(copied("musicgen/tokenizer.json"), read_tokenizer, 700),
    "base": Kind(copied("imported"), read_base, 150),
    "encodec": Kind(make_codec(random_musicgen.CENTRED), read_codec, 400),
    "encodec_chunked": Kind(make_codec(CHUNKED), read_codec, 400),
    "default": Kind(make_default, read_default, 100),
    "codes": Kind(make_codes, read_codes, 700),
    "manifest": Kind(make_recordings, read_recordings, 500),
    "table": Kind(make_table, read_recordings, 300),
    "recogniser": Kind(make_recogniser, read_recogniser, 150),
    "stage": Kind(make_stage, read_stage, 300),
    "configuration": Kind(make_configuration, read_configuration, 200),
}
