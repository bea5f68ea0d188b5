"""The one table from logical axes to mesh axes, its presets, and the platform of a mesh: see `sharding.py`.

JAX is imported by functions alone, since configurations (`config.py`) are read without it.
"""

import dataclasses
import math
import typing

from audiolm_jax.errors import InputError

if typing.TYPE_CHECKING:
    from jax.sharding import AbstractMesh, Mesh, PartitionSpec

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

    def spec(self, *logical: str | None) -> "PartitionSpec":
        """The partition of an array whose axes have these logical names.

        Raises InputError if two of its axes would live on the same mesh axis.
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
        """Rules for sampling: weights gathered over the axes of the rows (once, not in every step), and rows sharded
        over the axes of the positions too."""
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
    """Platform of the current mesh, "cpu", "tpu" or "gpu"; the mesh may be abstract, or a topology to compile for.
    Without a mesh, the platform of the default backend.

    Everything that chooses by platform asks here, so that a program compiled ahead of time is the one that runs.
    """
    import jax

    device = jax.sharding.get_abstract_mesh().abstract_device
    name = jax.default_backend() if device is None else device.platform
    return "gpu" if name in ("cuda", "rocm") else name
