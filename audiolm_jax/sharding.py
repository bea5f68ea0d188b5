"""The mesh, the one table from logical axes to mesh axes, and how a host's rows become a global batch.

Every array of the model is described by logical axis names ("batch", "embed", ...); a `Rules` value says on
which mesh axis each of them lives. Weights are *stored* as their full spec says and *used* after gathering
their "embed" axis, which is what makes a preset with `embed` sharded fully-sharded data parallelism (the
transpose of the gather is the reduce-scatter of the gradient). The idiom is the JAX training cookbook's and
jax-llm-examples' (explicit axis types, so a wrong layout is a type error at trace time).
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from audiolm_jax.errors import InputError

AXES = ("data", "tensor")


@dataclasses.dataclass(frozen=True)
class Rules:
    """Logical axis -> mesh axis (None: not sharded)."""

    batch: str | None = None  # rows of a batch
    embed: str | None = None  # the model-width axis of a weight, as stored (gathered before use)
    heads: str | None = None  # key/value heads (their query groups travel with them)
    ffn: str | None = None  # feed-forward width
    vocab: str | None = None  # ids: rows of the output matrix

    def spec(self, *logical: str | None) -> P:
        """The partition of an array whose axes have these logical names.

        Raises InputError if two of its axes would live on the same mesh axis.
        """
        names = [None if axis is None else getattr(self, axis) for axis in logical]
        used = [name for name in names if name is not None]
        if len(set(used)) != len(used):
            raise InputError(
                f"sharding rules put two axes of an array {logical} on one mesh axis: {tuple(names)}; "
                f"give each of them its own mesh axis or None"
            )
        return P(*names)


PRESETS = {
    "data": Rules(batch="data"),
    "fsdp": Rules(batch="data", embed="data"),
    "fsdp_tensor": Rules(batch="data", embed="data", heads="tensor", ffn="tensor", vocab="tensor"),
}


@dataclasses.dataclass(frozen=True)
class ShardingConfig:
    """preset: a key of PRESETS. tensor: devices along the tensor axis (the others go to data)."""

    preset: str = "data"
    tensor: int = 1

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise InputError(f"sharding.preset={self.preset!r} is unknown; choose one of {sorted(PRESETS)}")
        if self.tensor < 1:
            raise InputError(f"sharding.tensor={self.tensor} must be at least 1")
        if self.tensor > 1 and self.preset != "fsdp_tensor":
            raise InputError(f"sharding.tensor={self.tensor} needs sharding.preset='fsdp_tensor', not {self.preset!r}")

    @property
    def rules(self) -> Rules:
        return PRESETS[self.preset]


def make_mesh(config: ShardingConfig = ShardingConfig(), devices: Sequence[jax.Device] | None = None) -> Mesh:
    """An explicit-axis mesh of shape (data, tensor) over all given devices (default: every device).

    Enter it with `jax.set_mesh(mesh)`; the model never runs without one, also on a single device.
    Raises InputError if `tensor` does not divide the number of devices. Meshes over several TPU slices
    (data-centre network between them) are not supported by `jax.make_mesh`.
    """
    devices = jax.devices() if devices is None else list(devices)
    if len(devices) % config.tensor:
        raise InputError(f"sharding.tensor={config.tensor} does not divide the {len(devices)} devices there are")
    shape = (len(devices) // config.tensor, config.tensor)
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Explicit,) * 2, devices=devices)


def platform() -> str:
    """ "cpu", "tpu" or "gpu": of the mesh that is entered, also of devices that are only described (a topology to
    compile for, an abstract mesh that names its device); where nothing is said of devices, of those there are.

    Everything that chooses by platform asks here, so that a program compiled ahead of time is the one that will run.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    name = jax.default_backend() if device is None else device.platform
    return "gpu" if name in ("cuda", "rocm") else name


def abstract_mesh(data: int, tensor: int) -> AbstractMesh:
    """A mesh of devices this machine need not have: `jax.eval_shape` under it type-checks a layout."""
    return AbstractMesh((data, tensor), AXES, axis_types=(AxisType.Explicit,) * 2)


def single_device_mesh(device: jax.Device | None = None) -> Mesh:
    """The mesh of one device, for inference and notebooks."""
    return make_mesh(devices=[device or jax.local_devices()[0]])


def gather(weight: jax.Array, logical: Sequence[str | None], rules: Rules, dtype=None) -> jax.Array:
    """A stored weight as a layer uses it: cast, then its "embed" axis (and only it) gathered."""
    used = rules.spec(*(None if axis == "embed" else axis for axis in logical))
    weight = weight if dtype is None else weight.astype(dtype)
    return jax.sharding.reshard(weight, used)


def shard_batch(batch: dict[str, np.ndarray], mesh: Mesh, rules: Rules, leading: int = 0) -> dict[str, jax.Array]:
    """This process's rows -> global arrays, the row axis (after `leading` unsharded ones) over `batch`.

    Every process holds a different slice of the rows; the global batch is their concatenation in process
    order (`jax.make_array_from_process_local_data`).
    """
    spec = P(*(None,) * leading, rules.batch)
    sharding = NamedSharding(mesh, spec)
    return {name: jax.make_array_from_process_local_data(sharding, x) for name, x in batch.items()}
