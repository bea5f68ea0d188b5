"""`Spec`: the description of a model, which its weights are used with. Its JSON is in every checkpoint.

    {"model", "vocab", "text", "serialization", "framing", "data", "codec", "tokens", "conditioning", "source",
     "speakers"}

`model`, `serialization` and `data` are sections of the configuration; `vocab` follows from the codec and `data`.
"""

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from audiolm_jax import files, serialization
from audiolm_jax.config import check_names, keys_of, section
from audiolm_jax.data.config import DataConfig
from audiolm_jax.errors import InputError, shortened
from audiolm_jax.model.config import DepthConfig, LoraConfig, ModelConfig
from audiolm_jax.serialization import Grid, SerializationConfig
from audiolm_jax.serialization.framing import FRAMINGS
from audiolm_jax.serialization.vocab import TextSpec, Vocab

FORMAT = 1  # of the JSON; the first version that writes what this one cannot read makes it 2


@dataclasses.dataclass(frozen=True)
class CodecSpec:
    """The codec whose codes the model predicts: section `codec` of the configuration and a hash of the weights.

    A relative path is inside the workdir if the model has a `source.family`.
    """

    name: str
    path: str | None = None
    codebooks: int | None = None
    fingerprint: str = ""


@dataclasses.dataclass(frozen=True)
class ConditioningSpec:
    """The encoders that condition the model."""

    text_encoder: str = ""  # folder inside the workdir; "": text is tokens of the row


@dataclasses.dataclass(frozen=True)
class Source:
    """Where the weights come from; empty for a model trained from random weights."""

    family: str = ""  # of a published model: a name of `families.FAMILIES`
    repository: str = ""  # owner/name@commit that was imported
    weights: str = ""  # imported: sha256 of the weights
    base: str = ""  # fine-tuned: sha256 of the weights of the imported run that training started from
    lora: LoraConfig | None = None  # fine-tuned: with these adapters


@dataclasses.dataclass(frozen=True)
class Spec:
    """The description of a model."""

    model: ModelConfig
    vocab: Vocab
    serialization: SerializationConfig
    framing: str = "markers"  # a name of `framing.FRAMINGS`
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    codec: CodecSpec | None = None  # None: the codes are of no codec
    tokens: str = ""  # fingerprint of the token data set that it was trained on
    conditioning: ConditioningSpec = ConditioningSpec()
    source: Source = Source()
    text: TextSpec = dataclasses.field(default_factory=TextSpec)
    speakers: tuple[str, ...] = ()  # of the training tokens, if the template names them; (): any name goes

    @property
    def grid(self) -> Grid:
        """The order bound to the codebooks. Raises InputError for options that do not fit, and a depth network too many
        or too few."""
        grid = serialization.bind(self.serialization, self.vocab.codebooks, self.framing)
        require_depth(self.model, grid)
        return grid

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, with which `from_json` gives an equal Spec."""
        return json.loads(json.dumps({"format": FORMAT, **dataclasses.asdict(self)}))


def require_depth(model: ModelConfig, grid: Grid) -> None:
    """Raises InputError if the order needs a depth network that the model has not, or the other way round."""
    if grid.depth != (model.depth is not None):
        needs, has = ("needs a", "has none") if grid.depth else ("has no use for a", "has one")
        raise InputError(
            f"the strategy {grid.config.strategy!r} {needs} depth network (model.depth), and the model {has}"
        )


def model_of(config: ConfigDict, order: SerializationConfig, vocab: Vocab) -> ModelConfig:
    """The model of a configuration: section `model`, with section `depth` if the order needs a depth network."""
    model = section(config, "model")
    depth = serialization.bind(order, vocab.codebooks).depth
    return dataclasses.replace(model, depth=section(config, "depth")) if depth else model


PARTS = {
    "model": ModelConfig,
    "vocab": Vocab,
    "serialization": SerializationConfig,
    "data": DataConfig,
    "codec": CodecSpec,
    "conditioning": ConditioningSpec,
    "source": Source,
    "text": TextSpec,
}
OPTIONAL = ("codec", "model.depth", "source.lora")  # of these, what may be absent
INNER = {ModelConfig: {"depth": DepthConfig}, Source: {"lora": LoraConfig}}


def from_json(values: dict[str, Any], where: Any) -> Spec:
    """The Spec of the JSON that `to_json`, of this version or an earlier one, made.

    Raises InputError, naming `where` the values were read, if they are no Spec.
    """
    with _describing(where):
        files.not_newer(values, where, FORMAT)
        values = {name: value for name, value in values.items() if name != "format"}
        values = values if "conditioning" in values else _renamed(values)
        values = values | {"model": _model(values["model"]), "speakers": _names(values.get("speakers", ()))}
        spec = Spec(**{name: _part(name, PARTS.get(name), value) for name, value in values.items()})
        for name, known in keys_of(Spec, "").items():
            known.check(getattr(spec, name))
        if spec.framing not in FRAMINGS:
            raise ValueError(f"framing={spec.framing} must be one of {', '.join(FRAMINGS)}")
        return spec


def upgrade(config: dict[str, Any], where: Any) -> dict[str, Any]:
    """The config.json of a run or a comparison with the keys of this version."""
    with _describing(where):
        files.not_newer(config, where, FORMAT)
        corpus = config.get("corpus", {})
        if "channels" not in corpus and corpus.get("sample_rate") == 16_000:  # was the default: now the codec's rate is
            config = config | {"corpus": corpus | {"sample_rate": None}}
        if "vocab" not in config:  # a comparison: sections of the configuration alone
            return config | {"model": _model(config["model"])}
        config = config if "conditioning" in config else _renamed(config)
        names = [field.name for field in dataclasses.fields(Spec) if field.name in config]
        return config | from_json({name: config[name] for name in names}, where).to_json()


@contextlib.contextmanager
def _describing(where: Any) -> Iterator[None]:
    """Turns any error into an InputError that begins with the name of the file."""
    try:
        yield
    except Exception as error:
        if str(error).startswith(f"{where}: "):
            raise
        reason = shortened(" ".join(str(error).split()), 300)
        raise InputError(
            f"{where}: the description of the model cannot be used ({reason}); it is damaged, or of a newer version"
        ) from error


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        raise TypeError("speakers must be a list of names")
    return tuple(value)


def _part(name: str, kind: type | None, value: Any) -> Any:
    """A section of a description, its values of the annotated types. Raises what `_describing` catches."""
    if kind is None or (value is None and name in OPTIONAL):
        return value
    if not isinstance(value, dict):
        raise TypeError(f"{name} must be a section")
    value = {name: tuple(item) if isinstance(item, list) else item for name, item in value.items()}
    inner = {field: _part(f"{name}.{field}", of, value.pop(field, None)) for field, of in INNER.get(kind, {}).items()}
    check_names(value, kind, name)
    known = {} if kind is Vocab else keys_of(kind, name)  # Vocab checks what an annotation cannot say
    return kind(**{key: known[key].check(item) if key in known else item for key, item in value.items()}, **inner)


def _renamed(values: dict[str, Any]) -> dict[str, Any]:
    """Until November 2026 `text_encoder`, `weights`, `finetune` and `lora` stood beside the sections, `source` was the
    repository, and `vocab.special` stood for the framing `bare`."""
    values, vocab = dict(values), dict(values["vocab"])
    encoder, repository = values.pop("text_encoder", ""), values.pop("source", "")
    base, lora = values.pop("finetune", {}).get("weights", ""), values.pop("lora", None)
    source = Source("musicgen" if encoder else "", repository, values.pop("weights", ""), base)
    bare = vocab.pop("special", False)
    return values | {
        "vocab": {**vocab, "extra_ids": vocab["codebooks"]} if bare else vocab,
        "framing": "bare" if bare else "markers",
        "conditioning": {"text_encoder": encoder},
        "source": {**dataclasses.asdict(source), "lora": lora},
    }


def _model(values: dict[str, Any]) -> dict[str, Any]:
    """Section `model` of this version: once `state_widths` was `given_widths`, and `bias` whether all matrices have
    one."""
    values = {{"given_widths": "state_widths"}.get(name, name): value for name, value in values.items()}
    old = {True: "all", False: "none"}
    return values | {name: old[value] for name, value in values.items() if name == "bias" and isinstance(value, bool)}
