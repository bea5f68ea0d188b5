"""Fine-tuning: a run that starts from the weights of an imported checkpoint and trains them on other recordings.

    audiolm import facebook/musicgen-small@main runs/base
    audiolm prepare --config finetune_musicgen --data data/mine --config.corpus.path=recordings
    audiolm train --config finetune_musicgen --data data/mine --workdir runs/tuned

`finetune.base` names the imported run, which decides model, vocabulary, order, codec and sample rate (`configured`).
Trained are all weights of the model, or the A and B of LoRA (model/lora.py). Codec, text encoder and tokenizer stay as
they are and are copied into the new workdir, which can then be used without the imported run; only resuming reads the
imported run again, and checks that its weights are the same.

Where text is part of the sequence (CSM) a row is what it is in any other run, with the checkpoint's template; where it
stands beside the audio (Qwen3-TTS) a row is a prompt of the family and its audio (spoken.py). Where it
goes through an encoder (MusicGen) a batch holds the token ids of each recording's text, and the train step computes the
states of the text encoder from them: that costs little beside the decoder, keeps batches small, and no second data set
can be out of date. The text encoder's weights are an argument of the step, replicated on every device. A row without
text attends to nothing, like the unconditional branch of classifier-free guidance (`sampling.requests.encoded`).
"""

import dataclasses
import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from audiolm_jax import codecs, files
from audiolm_jax import config as configs
from audiolm_jax.data.config import DataConfig
from audiolm_jax.data.tokens import TokenSplit
from audiolm_jax.encoders import t5
from audiolm_jax.errors import InputError
from audiolm_jax.families import FAMILIES, musicgen, published
from audiolm_jax.families.captions import Captioned
from audiolm_jax.families.spoken import Spoken
from audiolm_jax.families.workdir import PUBLISHED_CONFIG
from audiolm_jax.model import checkpoints, lora, sharding, versions
from audiolm_jax.model.config import ModelConfig
from audiolm_jax.model.sharding import Rules
from audiolm_jax.model.spec import Source, Spec
from audiolm_jax.model.transformer import Encoded
from audiolm_jax.serialization import Grid, pieces
from audiolm_jax.serialization.text import Texts
from audiolm_jax.serialization.vocab import Vocab

FREE = ("dtype", "remat", "dropout")  # keys of section model that the imported run does not decide


def configured(config: ConfigDict) -> ConfigDict:
    """The configuration with everything that the checkpoint `finetune.base` decides.

    Raises InputError without a base, for one that was not imported, and for keys that were set to something else (all
    of them named).
    """
    if not config.finetune.base:
        raise InputError(
            f"lora.rank={config.lora.rank} needs weights to start from; name an imported run in finetune.base"
        )
    base, spec = Path(config.finetune.base), imported(config.finetune.base)
    path = base / spec.codec.path
    parts = {"model": spec.model, "serialization": spec.serialization}
    if spec.model.depth is not None:
        parts["depth"] = spec.model.depth
    decided = {
        f"{part}.{key}": getattr(values, key)
        for part, values in parts.items()
        for key in configs.keys_of(type(values), part)
        if part != "model" or key not in FREE
    }
    decided |= {
        "codec.name": spec.codec.name,
        "codec.path": str(path),
        "codec.codebooks": spec.codec.codebooks,
        "corpus.sample_rate": codecs.load(spec.codec.name, path).sample_rate,
        "data.max_frames": spec.vocab.max_frames,
        "data.codebooks": 0,
        "text.vocabulary": spec.text.vocabulary,
        "text.given": spec.vocab.text_given,
        "text.path": str(base / spec.text.path) if spec.text.path else "",
    }
    if spec.conditioning.text_encoder:  # a row attends to one text
        decided |= {"data.packing": False, "data.text_weight": 0.0, "data.template": "{text}"}
    else:
        decided |= {f"data.{key}": getattr(spec.data, key) for key in ("template", "speaker", "drop_text")}
    settings, defaults = configs.flat(config), configs.flat(configs.defaults())
    wrong = [
        f"{key} is {settings[key]!r} here and {value!r} there"
        for key, value in decided.items()
        if settings[key] not in (value, defaults[key])
    ]
    if wrong:
        raise InputError(
            f"finetune.base={base} is another model than the configuration says: {'; '.join(wrong)}; leave such keys "
            "at their defaults"
        )
    decided_config = ConfigDict(config.to_dict())
    with decided_config.ignore_type():
        decided_config.update_from_flattened_dict(decided)
    return decided_config.lock()


def imported(base: str | Path) -> Spec:
    """The Spec of an imported run. Raises InputError for any other folder."""
    base = Path(base)
    about = base / PUBLISHED_CONFIG
    spec = checkpoints.read_spec(base) if about.is_file() else None
    if spec is None or not spec.source.weights:
        raise InputError(
            f"finetune.base={base}: was not made by `audiolm import`; import a published checkpoint, or one that "
            "`audiolm export` wrote to a folder, and name that workdir"
        )
    kind = files.read_json(about, "finetune.base").get("model_type")
    if kind not in published.module(spec.source.family).TUNED:
        known = ", ".join(kind for name in FAMILIES for kind in published.module(name).TUNED)
        raise InputError(f"finetune.base={base}: models of type {kind!r} cannot be fine-tuned; {known} can")
    return spec


@dataclasses.dataclass(frozen=True)
class Base:
    """An imported run as the start of another one: an `Adapter` of training (training/step.py)."""

    folder: Path
    spec: Spec  # of the imported run
    lora: lora.LoraConfig
    encoder: t5.Encoder | None  # of the texts; None: they are part of the sequence
    tokenizer: Any  # of the encoder
    prompts: Any = None  # of a family whose text stands beside the audio (qwen3_tts)

    @property
    def vocab(self) -> Vocab:
        return self.spec.vocab

    @property
    def text(self) -> Texts:
        """The text vocabulary of the rows."""
        return pieces.of_model(self.spec.text, self.folder)

    def describe(self, spec: Spec) -> Spec:
        """The Spec of the run that starts here, with what `prepare` copies."""
        source = Source(self.spec.source.family, base=self.spec.source.weights, lora=self.lora)
        return dataclasses.replace(
            spec, framing=self.spec.framing, codec=self.spec.codec, conditioning=self.spec.conditioning, source=source
        )

    @property
    def token_ids(self) -> Callable[[str], list[int]]:
        """Text -> its tokens, none of an empty one. Can be pickled: the processes that make batches call it."""
        return functools.partial(t5.token_ids, self.tokenizer, self.encoder.config.vocab_size)

    def view(self, source: TokenSplit, config: DataConfig, grid: Grid, seed: int) -> Captioned | Spoken | None:
        """How an example becomes a row of a batch; None: as in any other run."""
        if self.prompts is not None:
            return Spoken(source, config, grid, self.vocab, self.prompts)
        return None if self.encoder is None else Captioned(source, config, grid, self.vocab, seed, self.token_ids)

    @property
    def text_encoder(self) -> t5.TextEncoder | None:
        return None if self.encoder is None else t5.TextEncoder(self.encoder, self.tokenizer)

    @property
    def conditioning(self) -> Any:
        """For a Generator of the run; None where text is part of the sequence."""
        return self.prompts if self.encoder is None else musicgen.Conditioning(self.text_encoder)

    @property
    def partial(self) -> bool:
        return self.lora.rank > 0

    def prepare(self, workdir: Path) -> None:
        """Copies what the family keeps beside the checkpoints into the workdir (one process does)."""
        if jax.process_index():
            return
        kept = [self.folder / part for part in published.module(self.spec.source.family).KEPT]
        every = [path for part in kept for path in (part, *sorted(part.rglob("*")))]
        paths = [path for path in every if path.is_file()]
        with files.writing(workdir):
            for path in paths:
                copy = workdir / path.relative_to(self.folder)
                if not copy.exists():
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    with files.replacing(copy) as temporary:
                        shutil.copyfile(path, temporary)

    def load(self, model: ModelConfig, rules: Rules, resumed: bool) -> tuple[dict, dict]:
        """(the model's weights, or their shapes if a checkpoint replaces them; {"text": the text encoder's weights, if
        there is one, "params": the model's weights under LoRA, else {}})."""
        if resumed and not self.partial:
            shapes = nnx.to_pure_dict(nnx.split(checkpoints.abstract_model(model, self.vocab, rules))[1])
            params = sharding.on_mesh(shapes, versions.mesh())
        else:
            params = checkpoints.params_of(checkpoints.restore_params(self.folder, rules=rules)[0])
        replicated = NamedSharding(versions.mesh(), P())

        def replicate(x: jax.Array) -> jax.Array:
            x = np.asarray(x)
            return jax.make_array_from_callback(x.shape, replicated, lambda index: x[index])

        text = {} if self.encoder is None else jax.tree.map(replicate, nnx.state(self.encoder))
        return params, {"text": text, "params": params if self.partial else {}}

    def init(self, build: Callable, weights: dict, key: jax.Array) -> dict:
        return lora.init(self.lora, weights, key) if self.partial else weights

    def merge(self, trained: dict, frozen: dict) -> dict:
        return lora.merged(self.lora, frozen["params"], trained) if self.partial else trained

    def encoded(self, frozen: dict, batch: dict[str, jax.Array], rules: Rules) -> Encoded | None:
        """(states_BEW of the texts, zero where there is no token; valid_BE); None without an encoder."""
        if self.encoder is None:
            return None
        graph = nnx.split(self.encoder)[0]

        def states(weights: Any, ids_BE: jax.Array, valid_BE: jax.Array) -> jax.Array:
            return jnp.where(valid_BE[..., None], nnx.merge(graph, weights)(ids_BE, valid_BE), 0)

        rows = rules.spec("batch", None)
        ids_BE, valid_BE = (jax.sharding.reshard(batch[name], rows) for name in ("text_BE", "text_valid_BE"))
        # Every device encodes the texts of its own rows, with plain arrays.
        run = jax.shard_map(states, in_specs=(P(), rows, rows), out_specs=rules.spec("batch", None, None))
        return run(frozen["text"], ids_BE, valid_BE), valid_BE


def open_base(config: ConfigDict) -> Base:
    """The imported run that a configuration (`configured`) starts from. Raises InputError for a LoRA rank that does not
    fit."""
    folder, section = Path(config.finetune.base), configs.section(config, "lora")
    spec = imported(folder)
    with jax.set_mesh(sharding.single_device_mesh()):
        shapes = nnx.to_pure_dict(nnx.split(checkpoints.abstract_model(spec.model, spec.vocab))[1])
    if section.rank:
        lora.check(section, shapes)
    if not spec.conditioning.text_encoder:
        own = published.module(spec.source.family)
        return Base(folder, spec, section, None, None, own.prompts(folder, spec) if spec.grid.framing.texts else None)
    text = folder / spec.conditioning.text_encoder
    return Base(folder, spec, section, t5.load(text), t5.read_tokenizer(text / t5.TOKENIZER))
