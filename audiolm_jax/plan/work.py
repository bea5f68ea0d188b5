"""FLOPs and matrix traffic of a traced program, per chip.

The compiler's own count visits the body of a loop once, and layers are a loop, so this counts in the jaxpr: loops times
their length, recomputation included, shapes divided by their shardings (explicit axes).

    flops = 2 * outputs * contracted, of every matrix multiplication
    bytes = its two operands and its result

An attention kernel (Pallas) reads its inputs and writes its outputs once; half of the blocks of its grid are counted,
as for a causal row of one document (packed documents and windows have fewer, rows that see ahead more). Elementwise
operations count as fused into their neighbours, so both numbers are floors.
"""

import dataclasses
import math
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Work:
    flops: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.flops + other.flops, self.bytes + other.bytes)

    def times(self, count: float) -> "Work":
        return Work(self.flops * count, self.bytes * count)


def count(jaxpr: Any) -> Work:
    """The work of one chip in a jaxpr (`jax.jit(f).trace(...).jaxpr`).

    Of the branches of a condition the largest counts; a loop whose length depends on data counts once.
    """
    total = Work()
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        name = eqn.primitive.name
        if name == "dot_general":
            total += _multiplication(eqn)
        elif name == "pallas_call":
            total += _kernel(eqn)
        elif name == "cond":
            total += max((count(branch) for branch in eqn.params["branches"]), key=lambda work: work.flops)
        elif name == "scan":
            total += count(eqn.params["jaxpr"]).times(eqn.params["length"])
        else:
            for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=_is_jaxpr):
                if _is_jaxpr(inner):
                    total += count(inner)
    return total


def _is_jaxpr(x: Any) -> bool:
    return hasattr(getattr(x, "jaxpr", x), "eqns")


def _multiplication(eqn: Any) -> Work:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    left, out = _local(eqn.invars[0].aval), _local(eqn.outvars[0].aval)
    flops = 2 * math.prod(out) * math.prod(left[axis] for axis in contracted)
    return Work(flops, sum(map(_bytes, (*eqn.invars, *eqn.outvars))))


def _kernel(eqn: Any) -> Work:
    inner = count(eqn.params["jaxpr"]).flops * math.prod(eqn.params["grid_mapping"].grid)
    return Work(inner / 2, sum(map(_bytes, (*eqn.invars, *eqn.outvars))))


def _local(aval: Any) -> tuple[int, ...]:
    """The shape on one chip. Inside `jax.shard_map` arrays are local already, along the axes it maps."""
    sharding = getattr(aval, "sharding", None)
    if sharding is None or sharding.mesh.empty:
        return aval.shape
    spec = (*sharding.spec, *(None,) * (len(aval.shape) - len(sharding.spec)))
    axes = [(part,) if isinstance(part, str) else part or () for part in spec]
    return tuple(n // math.prod(sharding.mesh.shape[axis] for axis in names) for n, names in zip(aval.shape, axes))


def _bytes(var: Any) -> int:
    dtype = getattr(var.aval, "dtype", None)
    return 0 if dtype is None else math.prod(_local(var.aval)) * dtype.itemsize
