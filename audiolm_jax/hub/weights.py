"""Published tensors by name: into the parameters of a module and back, with weight normalisation folded.

A parameter made by `hub.layers.parameter` knows how torch lays it out, any other is laid out in the file as here. Its
name in a file is its path in the module, or what a function `renamed` makes of that path.
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from audiolm_jax import files
from audiolm_jax.errors import InputError

LISTED = 12  # problems of a file that a message names


class Weights:
    """The tensors of a file, taken by name. Defects are collected; `finish` reports all of them at once."""

    def __init__(self, path: Path | str, tensors: dict[str, np.ndarray], what: str = "codec.path"):
        """what: the key, flag or argument that named the file; messages begin with it."""
        self.path, self.tensors, self.what = path, fold(tensors), what
        self.problems: list[str] = []

    def take(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """The tensor as float32, or zeros of that shape if it has a defect, which `finish` reports."""
        tensor = self.tensors.pop(name, None)
        if tensor is None:
            self.problems.append(f"{name} is missing")
        elif tensor.shape != shape:
            self.problems.append(f"{name} is {tensor.shape} where {shape} is needed")
        elif not np.isfinite(tensor).all():
            self.problems.append(f"{name} holds NaN or infinite values")
        else:
            return np.asarray(tensor, np.float32)
        return np.zeros(shape, np.float32)

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
        self.tensors |= {prefix + name: tensor for name, tensor in part.tensors.items()}

    def ignore(self, pattern: str) -> None:
        """Drops tensors that inference does not need (counters of training)."""
        self.tensors = {name: tensor for name, tensor in self.tensors.items() if not re.search(pattern, name)}

    def finish(self) -> None:
        """Raises InputError naming all tensors that are missing, misshapen, not finite or left over."""
        problems = self.problems + [f"{name} is unexpected" for name in self.tensors]
        if problems:
            more = f" and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
            raise InputError(
                f"{self.what}: {self.path} does not fit its configuration: {'; '.join(problems[:LISTED])}{more}; give "
                "both as they were published"
            )


def fold(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Weight normalisation w = g v / |v| folded, in both of torch's naming schemes; the norm is over all axes but 0."""
    folded = dict(tensors)
    for gain, direction in (("weight_g", "weight_v"), *[(f"parametrizations.weight.original{n}" for n in (0, 1))]):
        for name in [n for n in tensors if n.endswith(f".{gain}")]:
            base = name.removesuffix(gain)
            if base + direction not in tensors:
                continue
            g, v = folded.pop(name).astype(np.float32), folded.pop(base + direction).astype(np.float32)
            folded[f"{base}weight"] = v * (g / norms(v))
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


def norms(v: np.ndarray) -> np.ndarray:
    """L2 norms over all axes but the first, with these axes as ones."""
    return np.sqrt((v.astype(np.float64) ** 2).sum(tuple(range(1, v.ndim)), keepdims=True)).astype(np.float32)


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
