"""A module with the tensors that a weight table names."""

from flax import nnx

from audiolm_jax.families import table as tables
from audiolm_jax.hub.weights import Weights


def put(module, entries, tensors) -> None:
    """Sets the parameters of `entries`, each of its own shape, and takes back every tensor from them unchanged."""
    state = nnx.state(module)
    pure, weights = nnx.to_pure_dict(state), Weights("a reference", dict(tensors), "test")
    merge(pure, tables.packed(entries, weights, pure))
    assert not weights.missing and not weights.problems, (weights.missing, weights.problems)
    nnx.replace_by_pure_dict(state, pure)
    nnx.update(module, state)
    for name, tensor in tables.tensors_of(module, entries).items():
        assert (tensor == tensors[name]).all(), name


def merge(tree, changes) -> None:
    for name, value in changes.items():
        if isinstance(value, dict):
            merge(tree[name], value)
        else:
            assert tree[name].shape == value.shape, (name, tree[name].shape, value.shape)
            tree[name] = value
