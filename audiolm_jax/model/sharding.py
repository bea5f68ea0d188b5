"""The mesh, the one table from logical axes to mesh axes, and how a host's rows become a global batch.

Every array of the model is described by logical axis names ("batch", "embed", ...); a `Rules` value says on
which mesh axis each of them lives. Weights are *stored* as their full spec says and *used* after gathering
their "embed" axis, which is what makes a preset with `embed` sharded fully-sharded data parallelism (the
transpose of the gather is the reduce-scatter of the gradient). The idiom is the JAX training cookbook's and
jax-llm-examples' (explicit axis types, so a wrong layout is a type error at trace time).

What a training step sends under each preset (the tests read it from compiled programs):

    data          every gradient is reduced once, over all devices
    fsdp          weights of layers are gathered for the forward and for the backward pass, the others once; every
                  gradient is reduced and scattered once
    fsdp_tensor   the same over `data`, and activations are reduced over `tensor` twice a layer in either pass
    fsdp_context  fsdp over all devices, and keys and values are gathered over `context` in either pass (TPU's kernel
                  keeps them for the backward pass), their gradients reduced and scattered
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from audiolm_jax.errors import InputError

AXES = ("data", "context", "tensor")


@dataclasses.dataclass(frozen=True)
class Rules:
    """Logical axis -> mesh axis, several of them (the first is the outermost), or None: not sharded."""

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

    def spec(self, *logical: str | None) -> P:
        """The partition of an array whose axes have these logical names.

        Raises InputError if two of its axes would live on the same mesh axis.
        """
        used = [axis for name in logical for axis in self.axes(name)]
        names = [None if name is None else getattr(self, name) for name in logical]
        if len(set(used)) != len(used):
            raise InputError(
                f"sharding rules put two axes of an array {logical} on one mesh axis: {tuple(names)}; "
                f"give each of them its own mesh axis or None"
            )
        return P(*names)

    def parts(self, logical: str, mesh: Mesh | AbstractMesh) -> int:
        """Into how many parts the mesh cuts a logical axis."""
        return math.prod(mesh.shape[axis] for axis in self.axes(logical))

    def for_decoding(self) -> "Rules":
        """Where the same model lives while it is sampled from: weights are whole along the axes that rows lie on
        (gathered once, not in every step), and what shared positions shares rows."""
        rows = self.axes("batch") + self.axes("length")
        return dataclasses.replace(self, batch=rows[0] if len(rows) == 1 else rows, length=None, embed=None)


PRESETS = {
    "data": Rules(batch="data"),
    "fsdp": Rules(batch="data", embed="data"),
    "fsdp_tensor": Rules(batch="data", embed="data", heads="tensor", ffn="tensor", vocab="tensor"),
    # The last positions of a causal row see most, so the last devices of a row compute most.
    "fsdp_context": Rules(batch="data", length="context", embed=("data", "context")),
}


@dataclasses.dataclass(frozen=True)
class ShardingConfig:
    """preset: a key of PRESETS. tensor, context: devices along these axes (the others go to data)."""

    preset: str = "data"
    tensor: int = 1
    context: int = 1

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise InputError(f"sharding.preset={self.preset!r} is unknown; choose one of {sorted(PRESETS)}")
        for name, preset in (("tensor", "fsdp_tensor"), ("context", "fsdp_context")):
            size = getattr(self, name)
            if size < 1:
                raise InputError(f"sharding.{name}={size} must be at least 1")
            if size > 1 and self.preset != preset:
                raise InputError(f"sharding.{name}={size} needs sharding.preset={preset!r}, not {self.preset!r}")

    @property
    def rules(self) -> Rules:
        return PRESETS[self.preset]


def make_mesh(config: ShardingConfig = ShardingConfig(), devices: Sequence[jax.Device] | None = None) -> Mesh:
    """An explicit-axis mesh of shape (data, context, tensor) over all given devices (default: every device).

    Enter it with `jax.set_mesh(mesh)`; the model never runs without one, also on a single device.
    Raises InputError if `context` times `tensor` does not divide the number of devices, and for several TPU slices.
    """
    devices = jax.devices() if devices is None else list(devices)
    inner = config.context * config.tensor
    if len(devices) % inner:
        name = "context" if config.context > 1 else "tensor"
        raise InputError(f"sharding.{name}={inner} does not divide the {len(devices)} devices there are")
    if len({getattr(device, "slice_index", 0) for device in devices}) > 1:
        raise InputError("the devices belong to several TPU slices; a run takes the devices of one")
    shape = (len(devices) // inner, config.context, config.tensor)
    # A logical axis may be a part of a physical one: 4 of the 16 chips of a side.
    placed = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(placed, AXES, axis_types=(AxisType.Explicit,) * len(AXES))


def check_sizes(mesh: Mesh, rules: Rules, sizes: dict[str, tuple[str, int]]) -> None:
    """Raises InputError, before anything is compiled, for a size that its mesh axes do not divide.

    sizes: logical axis -> (what to call it, size), such as {"heads": ("model.kv_heads", 4)}.
    """
    for logical, (name, size) in sizes.items():
        axes, parts = rules.axes(logical), rules.parts(logical, mesh)
        if size % parts:
            raise InputError(
                f"{name}={size} cannot be shared by the {parts} devices along {' and '.join(axes)} (section sharding); "
                f"choose a multiple of {parts}, or fewer devices there"
            )


def platform() -> str:
    """ "cpu", "tpu" or "gpu": of the mesh that is entered, also of devices that are only described (a topology to
    compile for, an abstract mesh that names its device); where nothing is said of devices, of those there are.

    Everything that chooses by platform asks here, so that a program compiled ahead of time is the one that will run.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    name = jax.default_backend() if device is None else device.platform
    return "gpu" if name in ("cuda", "rocm") else name


def abstract_mesh(data: int = 1, context: int = 1, tensor: int = 1) -> AbstractMesh:
    """A mesh of devices this machine need not have: `jax.eval_shape` under it type-checks a layout."""
    return AbstractMesh((data, context, tensor), AXES, axis_types=(AxisType.Explicit,) * len(AXES))


def single_device_mesh(device: jax.Device | None = None) -> Mesh:
    """The mesh of one device, for inference and notebooks."""
    return make_mesh(devices=[device or jax.local_devices()[0]])


def gather(weight: jax.Array, logical: Sequence[str | None], rules: Rules, dtype=None) -> jax.Array:
    """A stored weight as a layer uses it: cast, then its "embed" axis (and only it) gathered."""
    used = rules.spec(*(None if axis == "embed" else axis for axis in logical))
    weight = weight if dtype is None else weight.astype(dtype)
    return jax.sharding.reshard(weight, used)


def all_but_gathered(primitive: Any, *_: Any, **__: Any) -> bool:
    """A policy for `jax.checkpoint`: the backward pass gathers again, and finds everything else that it needs."""
    return primitive.name != "reshard"


def on_mesh(tree: Any, mesh: Mesh) -> Any:
    """Shapes that know a partition, as `jax.eval_shape` gives them, -> the same on the devices of `mesh`."""

    def place(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        spec = x.sharding.spec if x.sharding else P()
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(place, tree)


def _places(mesh: Mesh) -> dict[int, tuple[int, ...]]:
    """Process -> the places along `data` where its devices lie; those that share a tensor or context group have the
    same. Raises InputError if the places of two processes overlap without being the same."""
    places: dict[int, set[int]] = {}
    for index, device in np.ndenumerate(mesh.devices):
        places.setdefault(device.process_index, set()).add(index[AXES.index("data")])
    groups = {process: tuple(sorted(of)) for process, of in places.items()}
    distinct = set(groups.values())
    if sum(map(len, distinct)) != mesh.shape["data"] or len(set(map(len, distinct))) != 1:
        raise InputError(
            "the devices of one process share rows with a part of another's; choose sharding.tensor or "
            "sharding.context as a divisor or a multiple of the number of devices of a process"
        )
    return groups


def shard_batch(batch: dict[str, np.ndarray], mesh: Mesh, rules: Rules, leading: int = 0) -> dict[str, jax.Array]:
    """This process's rows -> global arrays: after `leading` unsharded axes, rows over `batch`, positions over `length`.

    The axes are those in the names: `tokens_BLS` has positions, `text_BE` has none. Every process holds the rows of its
    places along `data`, in their order, with all positions. Raises InputError if rows or positions do not divide.
    """
    places = _places(mesh)
    mine, count = places[jax.process_index()], len(set(places.values()))

    def whole(name: str, x: np.ndarray) -> jax.Array:
        rows, positions = x.shape[leading : leading + 2]
        sizes = {"batch": ("rows of a microbatch", rows * count), "length": ("data.sequence_length", positions)}
        long = "L" in name.rpartition("_")[2]
        check_sizes(mesh, rules, sizes if long else {"batch": sizes["batch"]})
        sharding = NamedSharding(mesh, P(*(None,) * leading, rules.batch, rules.length if long else None))
        each = rows // len(mine)

        def part(index: tuple[slice, ...]) -> np.ndarray:
            start = index[leading].start or 0
            begin = mine.index(start // each) * each + start % each
            stop = begin + (index[leading].stop or rows * count) - start
            return x[(*index[:leading], slice(begin, stop), *index[leading + 1 :])]

        return jax.make_array_from_callback((*x.shape[:leading], rows * count, *x.shape[leading + 1 :]), sharding, part)

    return {name: whole(name, x) for name, x in batch.items()}
