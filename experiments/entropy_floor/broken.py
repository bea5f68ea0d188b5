"""Three mistakes that were found in published systems, to see that the experiment finds them too.

Each is a context manager that puts the mistake into the library until it is left.
"""

import contextlib
from unittest import mock

import jax.numpy as jnp
import numpy as np

from audiolm_jax.data import batches
from audiolm_jax.sampling import masked
from audiolm_jax.serialization import documents
from audiolm_jax.serialization import vocab as ids


@contextlib.contextmanager
def leak():
    """Every position of the causal pass also sees the next one: the codes that it is to predict."""
    right = documents.causal_row

    def wrong(*args, **options):
        row = right(*args, **options)
        row["ahead"] = np.minimum(1, np.arange(len(row["ahead"]))[::-1]).astype(np.int32)
        return row

    with mock.patch.object(documents, "causal_row", wrong):
        yield


@contextlib.contextmanager
def tail():
    """What comes after the end of codebook 0 is not trained (audiocraft truncates its layout there)."""
    right = batches.training_row

    def wrong(*args, **options):
        row = right(*args, **options)
        ends = np.flatnonzero(row["targets"][:, 0] == ids.END_AUDIO)
        if len(ends):
            row["weights"][ends[-1] + 1 :] = 0
        return row

    with mock.patch.object(batches, "training_row", wrong):
        yield


@contextlib.contextmanager
def ranking():
    """As many cells stay hidden as one level should have, but they are ranked among all (lucidrains SoundStorm)."""

    def wrong(confidence_BF, hidden_BF, left_B):
        rank_BF = jnp.argsort(jnp.argsort(confidence_BF, axis=1), axis=1)
        return hidden_BF & (rank_BF >= left_B[:, None])

    masked.run_levels.clear_cache()
    with mock.patch.object(masked, "revealed", wrong):
        yield
    masked.run_levels.clear_cache()


MISTAKES = {"leak": leak, "tail": tail, "ranking": ranking}
