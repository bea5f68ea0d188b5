"""Published tensors by name: into the parameters of a module and back, with weight normalisation folded.

A parameter made by `hub.layers.parameter` knows how torch lays it out, any other is laid out in the file as here. Its
name in a file is its path in the module, or what a function `renamed` makes of that path.
"""

import contextlib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from audiolm_jax import files
from audiolm_jax.errors import InputError, listed, shortened

STAND_IN = 2**24  # numbers that a stand-in for a defective tensor may have
WRAPPERS = ("_orig_mod.", "module.", "_forward_module.", "_fsdp_wrapped_module.")


class Weights:
    """The tensors of a file, taken by name. Defects are collected; `finish` reports all of them at once.

    Names that all begin with the prefix of a wrapper (torch.compile, data parallel) lose it.
    """

    def __init__(self, path: Path | str, tensors: dict[str, np.ndarray], what: str = "codec.path"):
        """what: the key, flag or argument that named the file; messages begin with it."""
        self.path, self.tensors, self.what = path, fold(unwrapped(tensors)), what
        self.count, self.largest = len(tensors), max((np.size(tensor) for tensor in tensors.values()), default=0)
        self.missing: list[str] = []
        self.problems: list[str] = []

    def take(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """The tensor as float32, or zeros of that shape if it has a defect, which `finish` reports.

        Raises InputError at once if those zeros would be larger than a tensor of a damaged configuration should be.
        """
        tensor = self.tensors.pop(name, None)
        if tensor is None:
            self.missing.append(name)
        elif tensor.shape != shape:
            self.problems.append(f"{name} is {tensor.shape} where {shape} is needed")
        elif not is_real(tensor):
            self.problems.append(f"{name} holds numbers of type {tensor.dtype} where floats are needed")
        elif not np.isfinite(tensor).all():
            self.problems.append(f"{name} holds NaN or infinite values")
        else:
            return np.asarray(tensor, np.float32)
        if math.prod(shape) > max(STAND_IN, self.largest):
            self.finish()
        return np.zeros(shape, np.float32)

    def check_layers(self, **counts: int) -> None:
        """Raises InputError for a number of layers or the like in a configuration that the file has not the tensors
        for: before anything is made of it."""
        for name, count in counts.items():
            if not 0 <= count <= max(self.count, 1):
                raise InputError(
                    f"{self.what}: {self.path} does not fit its configuration: {name}={shortened(str(count), 40)}, but "
                    f"the file holds {self.count} tensors; give both as they were published"
                )

    def fill(self, module: nnx.Module, renamed: Callable[[str], str] = str) -> nnx.Module:
        """The module with every parameter taken from the file. renamed: path in the module -> name in the file."""
        graph, state = nnx.split(module)
        flat = dict(nnx.to_flat_state(state))
        for path, variable in flat.items():
            axes = torch_axes(variable)
            theirs = tuple(variable.shape[axes.index(axis)] for axis in range(len(axes)))
            array = self.take(renamed(".".join(map(str, path))), theirs).transpose(axes)
            flat[path] = variable.replace(jnp.asarray(np.ascontiguousarray(array)))
        return nnx.merge(graph, nnx.from_flat_state(flat))

    def stack(self, names: list[str], shape: tuple[int, ...]) -> jnp.ndarray:
        """Tensors of one shape as one array, in the order of their names."""
        return jnp.asarray(np.stack([self.take(name, shape) for name in names]))

    @contextlib.contextmanager
    def below(self, prefix: str) -> Iterator["Weights"]:
        """The tensors whose names begin with `prefix`, without the prefix: those of a model inside a model."""
        names = [name for name in self.tensors if name.startswith(prefix)]
        inner = {name.removeprefix(prefix): self.tensors.pop(name) for name in names}
        part = Weights(self.path, inner, self.what)
        yield part
        self.problems += [prefix + problem for problem in part.problems]
        self.missing += [prefix + name for name in part.missing]
        self.tensors |= {prefix + name: tensor for name, tensor in part.tensors.items()}

    def ignore(self, pattern: str) -> None:
        """Drops tensors that inference does not need (counters of training)."""
        self.tensors = {name: tensor for name, tensor in self.tensors.items() if not re.search(pattern, name)}

    def finish(self) -> None:
        """Raises InputError naming tensors of every kind of defect: missing, misshapen, not finite, left over."""
        missing, unexpected = self.missing, list(self.tensors)
        kinds = [[f"{name} is missing" for name in missing], self.problems]
        kinds += [[f"{name} is unexpected" for name in unexpected]]
        if any(kinds):
            prefix = _prefix(missing, unexpected)
            hint = [f"names begin with {prefix!r} that should begin after it"] if prefix else []
            raise InputError(
                f"{self.what}: {self.path} does not fit its configuration: "
                f"{'; '.join(hint + [listed(kind) for kind in kinds if kind])}; give both as they were published"
            )


def is_real(tensor: np.ndarray) -> bool:
    """Whether an array is of a type that weights have: float16, bfloat16, float32 or float64."""
    return jnp.issubdtype(tensor.dtype, jnp.floating) and tensor.dtype.itemsize > 1


def unwrapped(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors without the prefixes of WRAPPERS that all of their names have."""
    for prefix in WRAPPERS:
        if tensors and all(name.startswith(prefix) and name != prefix for name in tensors):
            return unwrapped({name.removeprefix(prefix): tensor for name, tensor in tensors.items()})
    return tensors


def _prefix(missing: Sequence[str], unexpected: Sequence[str]) -> str:
    """What stands before the missing names in the names that are unexpected; "" if nothing does."""
    wanted = set(missing)
    for name in unexpected:
        for at in (at + 1 for at, letter in enumerate(name) if letter == "."):
            if name[at:] in wanted:
                return name[:at]
    return ""


def fold(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Weight normalisation w = g v / |v| folded, in both of torch's naming schemes.

    The norm is over the axes where g has size 1: all but the first (torch's default, `dim=0`), all but another, or all
    (`dim=None`, g is one number). Pairs whose shapes are no such ones stay, and are then unexpected; of integers, v is
    taken as the weight, whose type is then refused.
    """
    folded = dict(tensors)
    for gain, direction in (("weight_g", "weight_v"), *[(f"parametrizations.weight.original{n}" for n in (0, 1))]):
        for name in [n for n in tensors if n.endswith(f".{gain}")]:
            base = name.removesuffix(gain)
            g, v = tensors[name], tensors.get(base + direction)
            if (
                v is None
                or g.ndim not in (0, v.ndim)
                or any(n not in (1, m) for n, m in zip(g.shape, v.shape, strict=False))
            ):
                continue
            del folded[name], folded[base + direction]
            if is_real(g) and is_real(v):
                g, v = g.astype(np.float32), v.astype(np.float32)
                axes = tuple(n for n in range(v.ndim) if g.ndim == 0 or g.shape[n] == 1 < v.shape[n])
                v = v * (g / norms(v, axes))
            folded[f"{base}weight"] = v if is_real(g) else g
    return folded


def unfold(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every `conv.weight` as gain and direction, as weight-normalised models are saved."""
    unfolded = {}
    for name, tensor in tensors.items():
        if name.endswith(".conv.weight"):
            base = name.removesuffix("weight") + "parametrizations.weight.original"
            unfolded |= {f"{base}0": norms(tensor), f"{base}1": tensor}
        else:
            unfolded[name] = tensor
    return unfolded


def norms(v: np.ndarray, axes: tuple[int, ...] | None = None) -> np.ndarray:
    """L2 norms over some axes (None: all but the first), with these axes as ones."""
    axes = tuple(range(1, v.ndim)) if axes is None else axes
    return np.sqrt((v.astype(np.float64) ** 2).sum(axes, keepdims=True)).astype(np.float32)


def named(module: nnx.Module, renamed: Callable[[str], str] = str) -> dict[str, np.ndarray]:
    """The parameters of a module under their names in a file, in torch's layout."""
    tensors = {}
    for path, variable in nnx.to_flat_state(nnx.state(module)):
        inverse = np.argsort(torch_axes(variable))
        tensors[renamed(".".join(map(str, path)))] = np.ascontiguousarray(np.asarray(variable[...]).transpose(inverse))
    return tensors


def torch_axes(variable: nnx.Variable) -> Sequence[int]:
    """The axis of the array in the file for every axis of a parameter."""
    return variable.get_metadata().get("torch", range(variable.ndim))


def fingerprint(config: Any, tensors: dict[str, np.ndarray]) -> str:
    """Sha256 of a configuration and of weights by name, as float32 whatever their type in the file."""
    return files.digest(config, {name: np.asarray(tensor, np.float32) for name, tensor in tensors.items()})
