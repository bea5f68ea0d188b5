"""The mesh, shardings from logical axes, and the global batch of a host's rows.

Every array of the model has logical axis names ("batch", "embed", ...); `Rules` (config.py) maps them to mesh axes.
Weights are *stored* as their full spec says and *used* after gathering their "embed" axis, so a preset that shards
`embed` is fully-sharded data parallelism (the transpose of the gather is the reduce-scatter of the gradient). The idiom
is the JAX training cookbook's and jax-llm-examples' (explicit axis types: a wrong sharding is a type error at trace
time).

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
    """An explicit-axis mesh of shape (data, context, tensor) over `devices` (default: all), for `jax.set_mesh`.

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
    # A mesh axis may be a part of a dimension of the torus: 4 of 16 chips.
    placed = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(placed, AXES, axis_types=(AxisType.Explicit,) * len(AXES))


def on_one_cpu() -> bool:
    """Whether the current mesh is one CPU device, for which kernels/ has loops of its own."""
    return jax.sharding.get_abstract_mesh().size == 1 and platform() == "cpu"


def check_sizes(mesh: Mesh, rules: Rules, sizes: list[tuple[str, str, int]]) -> None:
    """Raises InputError, before anything is compiled, for a size that its mesh axes do not divide.

    sizes: logical axis, what to call it, size, such as ("heads", "model.kv_heads", 4).
    """
    for logical, name, size in sizes:
        axes, parts = rules.axes(logical), rules.parts(logical, mesh)
        if size % parts:
            raise InputError(
                f"{name}={size} cannot be shared by the {parts} devices along {' and '.join(axes)} (section sharding); "
                f"choose a multiple of {parts}, or fewer devices there"
            )


def single_device_mesh() -> Mesh:
    """The mesh of the first device, for inference and notebooks."""
    return make_mesh(devices=jax.local_devices()[:1])


def gather(weight: jax.Array, logical: Sequence[str | None], rules: Rules, dtype=None) -> jax.Array:
    """A stored weight as a layer uses it: cast, then gathered over its "embed" axis alone."""
    used = rules.spec(*(None if axis == "embed" else axis for axis in logical))
    weight = weight if dtype is None else weight.astype(dtype)
    return jax.sharding.reshard(weight, used)


def save_all_but_gathers(primitive: Any, *_: Any, **__: Any) -> bool:
    """Remat policy for `jax.checkpoint`: recompute all-gathers in the backward pass, save everything else."""
    return primitive.name != "reshard"


def on_mesh(tree: Any, mesh: Mesh) -> Any:
    """Abstract arrays of `jax.eval_shape`, their partitions as shardings on `mesh`."""

    def place(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        spec = x.sharding.spec if x.sharding else P()
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(place, tree)


def _places(mesh: Mesh) -> dict[int, tuple[int, ...]]:
    """Process -> indices of its devices along `data`, the same for processes that share a tensor or context group.

    Raises InputError if the indices of two processes overlap without being the same.
    """
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

    The axes are those in the names: `tokens_BLS` has positions, `text_BE` has none. A process holds the rows of its
    indices along `data`, in order, with all positions. Raises InputError if the mesh does not divide rows or positions.
    """
    places = _places(mesh)
    mine, count = places[jax.process_index()], len(set(places.values()))

    def global_array(name: str, x: np.ndarray) -> jax.Array:
        rows, positions = x.shape[leading : leading + 2]
        sizes = [("batch", "rows of a microbatch", rows * count), ("length", "data.sequence_length", positions)]
        long = "L" in name.rpartition("_")[2]
        check_sizes(mesh, rules, sizes if long else sizes[:1])
        sharding = NamedSharding(mesh, P(*(None,) * leading, rules.batch, rules.length if long else None))
        each = rows // len(mine)

        def part(index: tuple[slice, ...]) -> np.ndarray:
            start = index[leading].start or 0
            begin = mine.index(start // each) * each + start % each
            stop = begin + (index[leading].stop or rows * count) - start
            return x[(*index[:leading], slice(begin, stop), *index[leading + 1 :])]

        return jax.make_array_from_callback((*x.shape[:leading], rows * count, *x.shape[leading + 1 :]), sharding, part)

    return {name: global_array(name, x) for name, x in batch.items()}
