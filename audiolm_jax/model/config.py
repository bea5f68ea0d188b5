"""Sections `model`, `sharding` and `lora` of the configuration, and the sharding rules that `sharding.preset` names.

JAX is imported by functions alone: a configuration is checked without it.
"""

import dataclasses
import math
import typing

from audiolm_jax.config import key, validate
from audiolm_jax.errors import InputError

if typing.TYPE_CHECKING:
    import jax.numpy as jnp
    from jax.sharding import AbstractMesh, Mesh, PartitionSpec

AXES = ("data", "context", "tensor")


@dataclasses.dataclass(frozen=True)
class Rules:
    """Logical axis -> mesh axis, or several (the outermost first), or None: not sharded."""

    batch: str | tuple[str, ...] | None = None  # rows of a batch
    length: str | None = None  # positions of a row; keys and values are gathered over it
    embed: str | tuple[str, ...] | None = None  # the model-width axis of a weight, as stored (gathered before use)
    heads: str | None = None  # key/value heads (their query groups travel with them)
    ffn: str | None = None  # feed-forward width
    vocab: str | None = None  # ids: rows of the output matrix

    def axes(self, logical: str | None) -> tuple[str, ...]:
        """The mesh axes of a logical axis."""
        axes = None if logical is None else getattr(self, logical)
        return (axes,) if isinstance(axes, str) else axes or ()

    def spec(self, *logical: str | None) -> "PartitionSpec":
        """The partition of an array whose axes have these logical names.

        Raises InputError if two of them are on the same mesh axis.
        """
        from jax.sharding import PartitionSpec

        used = [axis for name in logical for axis in self.axes(name)]
        names = [None if name is None else getattr(self, name) for name in logical]
        if len(set(used)) != len(used):
            raise InputError(
                f"sharding rules put two axes of an array {logical} on one mesh axis: {tuple(names)}; "
                f"give each of them its own mesh axis or None"
            )
        return PartitionSpec(*names)

    def parts(self, logical: str, mesh: "Mesh | AbstractMesh") -> int:
        """Number of shards of a logical axis on the mesh."""
        return math.prod(mesh.shape[axis] for axis in self.axes(logical))

    def for_decoding(self) -> "Rules":
        """Rules for sampling: weights gathered over the data axis, once, and rows sharded also over the axis of the
        positions."""
        rows = self.axes("batch") + self.axes("length")
        return dataclasses.replace(self, batch=rows[0] if len(rows) == 1 else rows, length=None, embed=None)


PRESETS = {
    "data": Rules(batch="data"),
    "fsdp": Rules(batch="data", embed="data"),
    "fsdp_tensor": Rules(batch="data", embed="data", heads="tensor", ffn="tensor", vocab="tensor"),
    # The last positions of a causal row see most, so the last devices of a row compute most.
    "fsdp_context": Rules(batch="data", length="context", embed=("data", "context")),
}


def platform() -> str:
    """Platform of the current mesh, which may be abstract; without a mesh that of the default backend.

    Everything that depends on the platform calls this, so that a program compiled ahead of time is the one that runs.
    """
    from audiolm_jax.model import versions

    name = versions.platform()
    return "gpu" if name in ("cuda", "rocm") else name


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The transformer."""

    layers: int = key(4, "Layers (N).", at_least=1)
    width: int = key(256, "Width of the residual stream (D).", at_least=1)
    heads: int = key(4, "Query heads.", at_least=1)
    kv_heads: int = key(2, "Key/value heads (H), a divisor of model.heads.", at_least=1)
    head_width: int = key(64, "Channels of one head (K); even with rotary positions.", at_least=1)
    ffn: int = key(704, "Width of the feed-forward part (F).", at_least=1)
    norm: str = key("rmsnorm", "Normalisation before every part of a layer.", among=("rmsnorm", "layernorm"))
    norm_eps: float = key(1e-6, "Added to the variance in a norm.", above=0)
    mlp: str = key(
        "gated",
        "Feed-forward part: gated (SwiGLU), plain (GELU in its tanh form) or exact (GELU).",
        among=("gated", "plain", "exact"),
    )
    bias: bool = key(False, "Biases on the matrices of every layer.")
    positions: str = key(
        "rotary",
        "Position embedding; learned needs the number of rows, model.max_positions.",
        among=("rotary", "sinusoidal", "learned"),
    )
    max_positions: int = key(0, "Rows of the table of learned positions.", at_least=0)
    rope_base: float = key(10000.0, "Base of the rotary positions.", above=1)
    cross_width: int = key(
        0, "Width of the states of a text encoder that every layer attends to (MusicGen); 0: none.", at_least=0
    )
    state_widths: tuple[int, ...] = key(
        (), "Widths of encoders whose states stand at positions (melody and text of MusicGen-melody).", at_least=1
    )
    dropout: float = key(
        0.0, "Dropout on the output of each attention and feed-forward part, in training.", at_least=0, below=1
    )
    tied: bool = key(False, "Use the embedding table as the output matrix.")
    dtype: str = key(
        "auto",
        "Type of activations; parameters are float32. auto: float32 on a CPU at any batch size, so that a request "
        "gives the same alone and in a batch, else bfloat16. bfloat16 on a CPU halves the weights of decoding and is "
        "faster from four rows up, guidance counted twice; sums are float32.",
        among=("auto", "float32", "bfloat16"),
    )
    remat: bool = key(False, "Recompute activations in the backward pass instead of keeping them.")

    def __post_init__(self) -> None:
        validate(self, "model")
        if self.heads % self.kv_heads:
            raise InputError(f"model.kv_heads={self.kv_heads} must divide model.heads={self.heads}")
        if self.head_width % 2 and self.positions == "rotary":
            raise InputError(f"model.head_width={self.head_width} must be even (rotary positions pair channels)")
        if bool(self.max_positions) != (self.positions == "learned"):
            accepted = "at least 1" if self.positions == "learned" else "0"
            raise InputError(
                f"model.max_positions={self.max_positions} must be {accepted} with model.positions={self.positions}"
            )

    @property
    def compute_dtype(self) -> "jnp.dtype":
        import jax.numpy as jnp

        if self.dtype == "auto":
            return jnp.dtype("float32" if platform() == "cpu" else "bfloat16")
        return jnp.dtype(self.dtype)

    @property
    def cache_dtype(self) -> "jnp.dtype":
        """Type of the KV cache. float32 on a CPU: XLA has no product of a row and a matrix of 16 bits there, and would
        write a float32 copy of the cache in every step."""
        import jax.numpy as jnp

        return jnp.dtype("float32") if platform() == "cpu" else self.compute_dtype

    def sharded_sizes(self, vocab_size: int) -> dict[str, tuple[str, int]]:
        """The sizes that mesh axes must divide, for `sharding.check_sizes`."""
        names = {"embed": "width", "heads": "kv_heads", "ffn": "ffn"}
        sizes = {logical: (f"model.{name}", getattr(self, name)) for logical, name in names.items()}
        return sizes | {"vocab": ("the number of rows of the vocabulary", table_rows(vocab_size))}


def table_rows(vocab_size: int) -> int:
    """Rows of the embedding table and columns of the output matrix: padded to a multiple of 128 for the mesh."""
    return -(-vocab_size // 128) * 128


@dataclasses.dataclass(frozen=True)
class ShardingConfig:
    """How arrays are sharded over devices."""

    preset: str = key(
        "data",
        "data (copies of the model), fsdp (weights sharded), fsdp_tensor (also heads, ffn and vocabulary) or "
        "fsdp_context (also the positions of a row, for long audio).",
        among=tuple(PRESETS),
    )
    tensor: int = key(1, "fsdp_tensor: devices along the tensor axis; the others go to data.", at_least=1)
    context: int = key(1, "fsdp_context: devices that share a row; the others go to data.", at_least=1)

    def __post_init__(self) -> None:
        validate(self, "sharding")
        for name, preset in (("tensor", "fsdp_tensor"), ("context", "fsdp_context")):
            size = getattr(self, name)
            if size > 1 and self.preset != preset:
                raise InputError(f"sharding.{name}={size} needs sharding.preset={preset}, not {self.preset}")

    @property
    def rules(self) -> Rules:
        return PRESETS[self.preset]


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """LoRA, for fine-tuning."""

    rank: int = key(0, "Rank of the update of each chosen matrix (columns of A); 0: train all weights.", at_least=0)
    alpha: float = key(16.0, "The update is multiplied by alpha / rank.", above=0)
    matrices: tuple[str, ...] = key(
        ("attention", "cross"),
        "Chosen matrices of every layer; cross is the attention to the text.",
        among=("attention", "cross", "ffn"),
        filled=True,
    )

    def __post_init__(self) -> None:
        validate(self, "lora")
