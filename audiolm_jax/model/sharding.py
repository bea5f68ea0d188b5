"""The mesh, the one table from logical axes to mesh axes, and how a host's rows become a global batch.

Every array of the model is described by logical axis names ("batch", "embed", ...); a `Rules` value says on
which mesh axis each of them lives. Weights are *stored* as their full spec says and *used* after gathering
their "embed" axis, which is what makes a preset with `embed` sharded fully-sharded data parallelism (the
transpose of the gather is the reduce-scatter of the gradient). The idiom is the JAX training cookbook's and
jax-llm-examples' (explicit axis types, so a wrong layout is a type error at trace time).

Collectives of a training step under each preset (the tests count them in compiled programs):

    data          one all-reduce of every gradient, over all devices
    fsdp          all-gathers of the weights of a layer in the forward and in the backward pass, of the others once; one
                  reduce-scatter of every gradient
    fsdp_tensor   as fsdp over `data`, and all-reduces of activations over `tensor` twice a layer in either pass
    fsdp_context  as fsdp over all devices, and all-gathers of keys and values over `context` in either pass (TPU's
                  kernel keeps them for the backward pass), reduce-scatters of their gradients
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from audiolm_jax.errors import InputError
from audiolm_jax.model.config import AXES, Rules, ShardingConfig
from audiolm_jax.model.config import PRESETS as PRESETS
from audiolm_jax.model.config import platform as platform


def make_mesh(config: ShardingConfig | None = None, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """An explicit-axis mesh of shape (data, context, tensor) over all given devices (default: every device).

    Enter it with `jax.set_mesh(mesh)`; the model never runs without one, also on a single device.
    Raises InputError if `context` times `tensor` does not divide the number of devices, and for several TPU slices.
    """
    config, devices = config or ShardingConfig(), jax.devices() if devices is None else list(devices)
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


def on_one_cpu() -> bool:
    """Whether the current mesh is one CPU device, for which kernels/ has loops of its own."""
    return jax.sharding.get_abstract_mesh().size == 1 and platform() == "cpu"


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


def single_device_mesh(device: jax.Device | None = None) -> Mesh:
    """The mesh of one device, for inference and notebooks."""
    return make_mesh(devices=[device or jax.local_devices()[0]])


def gather(weight: jax.Array, logical: Sequence[str | None], rules: Rules, dtype=None) -> jax.Array:
    """A stored weight as a layer uses it: cast, then its "embed" axis (and only it) gathered."""
    used = rules.spec(*(None if axis == "embed" else axis for axis in logical))
    weight = weight if dtype is None else weight.astype(dtype)
    return jax.sharding.reshard(weight, used)


def save_all_but_gathers(primitive: Any, *_: Any, **__: Any) -> bool:
    """Remat policy for `jax.checkpoint`: recompute all-gathers in the backward pass, save everything else."""
    return primitive.name != "reshard"


def on_mesh(tree: Any, mesh: Mesh) -> Any:
    """Abstract arrays with a partition, as `jax.eval_shape` gives them, -> the same with shardings on `mesh`."""

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

    def global_array(name: str, x: np.ndarray) -> jax.Array:
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

    return {name: global_array(name, x) for name, x in batch.items()}
