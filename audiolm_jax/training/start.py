"""Training that starts from the weights of another run (`training.init_from`): all of them are trained."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from audiolm_jax import files
from audiolm_jax.errors import InputError
from audiolm_jax.model import checkpoints, sharding, versions
from audiolm_jax.model.config import ModelConfig
from audiolm_jax.model.sharding import Rules
from audiolm_jax.model.spec import Spec
from audiolm_jax.training.step import Adapter

FREE = ("dtype", "remat", "dropout")  # keys of section model that may differ: they change no weight


@dataclasses.dataclass(frozen=True)
class Start(Adapter):
    """source: the workdir of a run, or a file exported from one. spec: of the new run.

    Raises InputError if the models differ in more than FREE, or were made for other codes.
    """

    source: str
    spec: Spec

    def __post_init__(self) -> None:
        theirs, where = self._read()[1], f"training.init_from={self.source}"
        if theirs.source.family:
            raise InputError(f"{where} was imported from a published checkpoint; name it in finetune.base")
        ours = dataclasses.asdict(self.spec.model)
        wrong = [
            f"model.{name} is {value!r} there and {ours[name]!r} here"
            for name, value in dataclasses.asdict(theirs.model).items()
            if name not in FREE and value != ours[name]
        ]
        if theirs.vocab != self.spec.vocab:
            wrong.append(f"its vocabulary is {theirs.vocab}, here it is {self.spec.vocab}")
        if theirs.text != self.spec.text:
            wrong.append("its texts are of another vocabulary, or pieces of another tokenizer")
        if theirs.codec and self.spec.codec and theirs.codec.fingerprint != self.spec.codec.fingerprint:
            wrong.append(f"it was trained on codes of codec {theirs.codec.name!r} with other weights")
        if wrong:
            raise InputError(f"{where} is another model: {'; '.join(wrong)}")

    def _read(self, **options: Any) -> tuple[Any, Spec]:
        path = files.place(self.source)
        if path.is_file():
            return checkpoints.load_safetensors(path, **options)
        return checkpoints.restore_params(path, **options)

    def load(self, model: ModelConfig, rules: Rules, resumed: bool) -> tuple[dict, dict]:
        """(the weights, or their shapes if a checkpoint replaces them; nothing frozen)."""
        if resumed:
            shapes = nnx.to_pure_dict(nnx.split(checkpoints.abstract_model(model, self.spec.vocab, rules))[1])
            return sharding.on_mesh(shapes, versions.mesh()), {}
        return checkpoints.params_of(self._read(rules=rules)[0]), {}

    def init(self, build: Callable[[jax.Array], dict], weights: dict, key: jax.Array) -> dict:
        return weights
