"""Sections `model`, `depth`, `sharding` and `lora` of the configuration, and the rules that `sharding.preset` names.

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


def _check_scaling(part: str, config: "DepthConfig | ModelConfig") -> None:
    scaling, said = config.rope_scaling, f"{part}.rope_scaling={config.rope_scaling}"
    if scaling and config.positions != "rotary":
        raise InputError(f"{said} needs {part}.positions=rotary, not {config.positions}; leave it at ()")
    if scaling and (len(scaling) != 4 or scaling[1] >= scaling[2]):
        raise InputError(f"{said} must be four numbers, factor, low, high and original length, low below high")


@dataclasses.dataclass(frozen=True)
class DepthConfig:
    """The depth network, which predicts the codes of a frame one after the other (strategy depth).

    Moshi's is join=add, weights=per_codebook, positions=none, projection=per_codebook, final_norm=False; CSM's and that
    of Qwen3-TTS join=prefix, weights=shared, positions=rotary, embeddings=backbone, the latter with projection_bias.
    """

    layers: int = key(2, "Layers.", at_least=1)
    width: int = key(128, "Width of its residual stream (d).", at_least=1)
    heads: int = key(4, "Query heads.", at_least=1)
    kv_heads: int = key(4, "Key/value heads, a divisor of depth.heads.", at_least=1)
    head_width: int = key(32, "Channels of one head; even with rotary positions.", at_least=1)
    ffn: int = key(256, "Width of the feed-forward part.", at_least=1)
    norm: str = key("rmsnorm", "As model.norm.", among=("rmsnorm", "layernorm"))
    norm_eps: float = key(1e-6, "As model.norm_eps.", above=0)
    mlp: str = key("gated", "As model.mlp.", among=("gated", "plain", "exact"))
    bias: str = key("none", "As model.bias.", among=("none", "qkv", "all"))
    qk_norm: bool = key(False, "As model.qk_norm.")
    positions: str = key(
        "learned",
        "What tells the codebooks of a frame apart, beside their weights.",
        among=("none", "rotary", "learned"),
    )
    rope_base: float = key(10000.0, "As model.rope_base.", above=1)
    rope_scaling: tuple[float, ...] = key((), "As model.rope_scaling.", above=0)
    join: str = key(
        "add",
        "How it reads the transformer: its state is added to the embedding of the code before (add), or stands before "
        "those as a position of its own (prefix).",
        among=("add", "prefix"),
    )
    weights: str = key(
        "shared", "One set of matrices for all codebooks, or one for each.", among=("shared", "per_codebook")
    )
    schedule: tuple[int, ...] = key(
        (),
        "per_codebook: the set of matrices of each codebook but the first, such as (0, 1, 1); (): one for each.",
        at_least=0,
    )
    embeddings: str = key(
        "own", "The table of the code before: one of its own width, or the transformer's.", among=("own", "backbone")
    )
    projection: str = key(
        "shared",
        "The matrix from the width of the transformer to its own: one, one per codebook (add), or none (equal widths).",
        among=("shared", "per_codebook", "none"),
    )
    projection_bias: bool = key(False, "A bias on that matrix.")
    final_norm: bool = key(True, "Normalise before its output matrices.")

    def __post_init__(self) -> None:
        validate(self, "depth")
        if self.heads % self.kv_heads:
            raise InputError(f"depth.kv_heads={self.kv_heads} must divide depth.heads={self.heads}")
        _check_scaling("depth", self)
        if self.head_width % 2 and self.positions == "rotary":
            raise InputError(f"depth.head_width={self.head_width} must be even (rotary positions pair channels)")
        if self.projection == "per_codebook" and (self.join == "prefix" or self.embeddings == "backbone"):
            raise InputError(
                "depth.projection=per_codebook needs depth.join=add and depth.embeddings=own, as every codebook then "
                "reads the state of the transformer by itself"
            )
        if self.weights == "per_codebook" and self.join == "prefix":
            raise InputError("depth.weights=per_codebook needs depth.join=add, where every codebook has one position")
        if self.schedule and self.weights == "shared":
            raise InputError(f"depth.schedule={self.schedule} needs depth.weights=per_codebook; leave it empty")
        if self.projection_bias and self.projection == "none":
            raise InputError("depth.projection_bias needs a projection; depth.projection is none")

    @property
    def block(self) -> "ModelConfig":
        """The sizes of its layers. The positions are added by the network itself."""
        names = (
            "layers",
            "width",
            "heads",
            "kv_heads",
            "head_width",
            "ffn",
            "norm",
            "norm_eps",
            "mlp",
            "bias",
            "qk_norm",
        )
        positions = "rotary" if self.positions == "rotary" else "sinusoidal"
        return ModelConfig(positions=positions, **{name: getattr(self, name) for name in names})


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
    bias: str = key(
        "none",
        "Biases of every layer: of no matrix, of queries, keys and values (Qwen2), or of all matrices.",
        among=("none", "qkv", "all"),
    )
    qk_norm: bool = key(False, "RMSNorm over every query and key of the self-attention, before positions (Qwen3).")
    attention_scale: float = key(
        0.0, "Factor of queries before they meet the keys, 1 in Dia; 0: one over the root of their width.", at_least=0
    )
    window: int = key(
        0,
        "Sliding window: a query sees the last model.window positions of its document, its own included, and "
        "what follows it where it may look ahead; 0: all of its document.",
        at_least=0,
    )
    positions: str = key(
        "rotary",
        "Position embedding; learned needs the number of rows, model.max_positions.",
        among=("rotary", "sinusoidal", "learned"),
    )
    max_positions: int = key(0, "Rows of the table of learned positions.", at_least=0)
    rope_base: float = key(10000.0, "Base of the rotary positions.", above=1)
    rope_scaling: tuple[float, ...] = key(
        (), "Scaling of the rotary frequencies of Llama 3: factor, low, high, original length; (): none.", above=0
    )
    cross_width: int = key(
        0, "Width of the states of a text encoder that every layer attends to (MusicGen); 0: none.", at_least=0
    )
    cross_heads: int = key(0, "Query heads of the attention to these states; 0: model.heads.", at_least=0)
    cross_kv_heads: int = key(0, "Key/value heads of that attention; 0: model.kv_heads.", at_least=0)
    cross_head_width: int = key(0, "Channels of one head of that attention; 0: model.head_width.", at_least=0)
    state_widths: tuple[int, ...] = key(
        (), "Widths of encoders whose states stand at positions (melody and text of MusicGen-melody).", at_least=1
    )
    text_rows: int = key(
        0,
        "Rows of a table of text that is given beside every other input (framing `beside`, Qwen3-TTS); 0: none.",
        at_least=0,
    )
    text_width: int = key(0, "Width of that table, which an MLP as wide projects to the model.", at_least=0)
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
    depth: DepthConfig | None = dataclasses.field(default=None, metadata={"section": "depth"})  # of strategies with one

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
        _check_scaling("model", self)
        self._check_cross()
        if bool(self.text_rows) != bool(self.text_width):
            raise InputError(
                f"model.text_rows={self.text_rows} and model.text_width={self.text_width}: a table of text beside "
                "other inputs has both, and without one both are 0"
            )
        if self.depth is not None and self.depth.projection == "none" and self.depth.width != self.width:
            raise InputError(
                f"depth.projection=none needs equal widths; depth.width={self.depth.width}, model.width={self.width}"
            )

    def _check_cross(self) -> None:
        for name in ("cross_heads", "cross_kv_heads", "cross_head_width"):
            if getattr(self, name) and not self.cross_width:
                raise InputError(f"model.{name}={getattr(self, name)} needs states to attend to, model.cross_width")
        heads, kv_heads, _ = self.cross_sizes
        if heads % kv_heads:
            raise InputError(
                f"model.cross_kv_heads={kv_heads} must divide model.cross_heads={heads}; 0 stands for those of the "
                f"self-attention"
            )

    @property
    def cross_sizes(self) -> tuple[int, int, int]:
        """Query heads, key/value heads and head width of the cross-attention."""
        return (
            self.cross_heads or self.heads,
            self.cross_kv_heads or self.kv_heads,
            self.cross_head_width or self.head_width,
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

    def sharded_sizes(self, vocab_size: int) -> list[tuple[str, str, int]]:
        """The sizes that mesh axes must divide, for `sharding.check_sizes`."""
        names = {"embed": "width", "heads": "kv_heads", "ffn": "ffn"}
        parts = {"model": self} if self.depth is None else {"model": self, "depth": self.depth}
        sizes = [
            (axis, f"{part}.{name}", getattr(config, name))
            for part, config in parts.items()
            for axis, name in names.items()
        ]
        if self.text_width:
            sizes.append(("embed", "model.text_width", self.text_width))
        if self.cross_width:
            sizes.append(("heads", "model.cross_kv_heads", self.cross_sizes[1]))
        return [*sizes, ("vocab", "the number of rows of the vocabulary", table_rows(vocab_size))]


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
