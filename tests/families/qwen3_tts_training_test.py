"""What a training row of Qwen3-TTS must be like, and four mistakes of the published fine-tuning script, each made here
on purpose and each failing one of the checks (docs/qwen3_tts_finetuning.md)."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from audiolm_jax.families import published
from audiolm_jax.model import checkpoints, losses, sharding
from audiolm_jax.model.config import PRESETS
from audiolm_jax.serialization.documents import causal_row
from audiolm_jax.serialization.vocab import END_AUDIO, PAD, TEXT_START
from audiolm_jax.training import step as training
from audiolm_jax.training.config import OptimizerConfig, TrainingConfig
from tests.helpers import published_qwen3_tts as small

T, Q = 9, small.CODEBOOKS


@pytest.fixture(scope="module", autouse=True)
def mesh():
    with jax.set_mesh(sharding.single_device_mesh()):
        yield


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("qwen3_tts")
    small.write(path, num_hidden_layers=1, text_width=20)  # as wide as the talker: the mistake about text needs it
    return published.read(path)


@pytest.fixture(scope="module")
def batch(checkpoint):
    """One row: text beside nine frames, which it ends before."""
    codes_TQ = np.random.default_rng(0).integers(0, small.CODES, (T, Q))
    document = checkpoint.prompts.document("who is there", language="english", speaker="ryan", text_first=False)
    row = causal_row((*document, ("audio", codes_TQ)), checkpoint.spec.grid, checkpoint.spec.vocab)
    names = {"tokens": "BLS", "targets": "BLS", "heads": "BLS", "weights": "BLS", "positions": "BL", "ahead": "BL"}
    arrays = {f"{name}_{axes}": row[name][None] for name, axes in names.items()}
    return arrays | {"segments_BL": np.ones_like(arrays["positions_BL"])}


def log_probabilities(model, batch, vocab, state_of=lambda hidden_BLD: hidden_BLD):
    """Of every prediction, [1, L, Q]. state_of: what the code predictor is given of the talker's states."""
    hidden_BLD = model(batch["tokens_BLS"], batch["positions_BL"], batch["segments_BL"])
    first, others = (
        losses.scored(model, x, batch, vocab, jax.random.key(0), 1.0) for x in (hidden_BLD, state_of(hidden_BLD))
    )
    return jnp.concatenate([first[0].logprob_BLS, others[1].logprob_BLS], axis=-1)


@dataclasses.dataclass(frozen=True)
class Script:
    """How a script trains. labels: what it asks for. score: the log-probabilities of these."""

    labels: Callable[[dict], dict] = dict
    score: Callable[..., Any] = log_probabilities


def shifted_twice(batch):
    """The labels are moved by one position before a loss that moves them once more."""
    names = ("targets_BLS", "heads_BLS", "weights_BLS")
    return batch | {name: np.pad(batch[name][:, 1:], ((0, 0), (0, 1), (0, 0))) for name in names}


def state_of_its_own_frame(model, batch, vocab):
    """The code predictor continues the state at the frame whose codes it predicts."""
    return log_probabilities(model, batch, vocab, lambda hidden_BLD: jnp.roll(hidden_BLD, -1, axis=1))


def last_book_left_out(batch):
    """The labels of the code predictor are moved by one book before a loss that moves them once more: the output matrix
    of a book learns the next one, and that of the last learns nothing."""
    targets, heads, weights = (batch[f"{name}_BLS"].copy() for name in ("targets", "heads", "weights"))
    offset = small.CODES * (targets[..., 2:] > 0)
    targets[..., 1:-1] = targets[..., 2:] - offset
    targets[..., -1] = heads[..., -1] = weights[..., -1] = 0
    return batch | {"targets_BLS": targets, "heads_BLS": heads, "weights_BLS": weights}


def text_unprojected(model, batch, vocab):
    """The rows of the table of text are added as they are."""
    table = model.text.embedding_VW
    plain = nnx.clone(model)
    plain.text = lambda text: jnp.where((text > 0)[..., None], table[...][text - TEXT_START], 0)
    return log_probabilities(plain, batch, vocab)


def every_label_is_the_input_that_follows(script, checkpoint, batch):
    asked = script.labels(batch)
    targets, heads, tokens = (asked[f"{name}_BLS"][0] for name in ("targets", "heads", "tokens"))
    for stream in range(Q):
        [at] = np.nonzero(heads[:, stream])
        np.testing.assert_array_equal(targets[at, stream], tokens[at + 1, stream])


def no_prediction_sees_its_own_frame(script, checkpoint, batch):
    """Other codes as the input of a position leave every prediction before it as it was, bit for bit."""
    vocab = checkpoint.spec.vocab
    score = jax.jit(lambda model, tokens_BLS: script.score(model, {**asked, "tokens_BLS": tokens_BLS}, vocab))
    asked = {name: jnp.asarray(x) for name, x in script.labels(batch).items()}
    before = np.asarray(score(checkpoint.model, asked["tokens_BLS"]))[0]
    opened = np.flatnonzero(batch["heads_BLS"][0, :, 1])[0] + 1
    for at in (opened, opened + 4, opened + T - 1):
        tokens_BLS = batch["tokens_BLS"].copy()
        first = checkpoint.spec.vocab.code_offsets
        tokens_BLS[0, at, :Q] = first + (tokens_BLS[0, at, :Q] - first + 7) % small.CODES
        after = np.asarray(score(checkpoint.model, jnp.asarray(tokens_BLS)))[0]
        np.testing.assert_array_equal(after[:at], before[:at])
        assert (after[at] != before[at]).any()


def every_code_is_trained_once(script, checkpoint, batch):
    asked = script.labels(batch)
    trained = (asked["weights_BLS"][0] > 0) & (asked["heads_BLS"][0] > 0)
    assert trained.sum(axis=0).tolist() == [T + 1] + [T] * (Q - 1)  # and the end
    assert (asked["targets_BLS"][0, :, 0] == END_AUDIO).sum() == 1


def every_weight_of_the_text_is_trained(script, checkpoint, batch):
    graph, params = nnx.split(checkpoint.model)
    asked = {name: jnp.asarray(x) for name, x in script.labels(batch).items()}

    @jax.jit
    @jax.grad
    def gradient(params):
        return -script.score(nnx.merge(graph, params), asked, checkpoint.spec.vocab).sum()

    found = nnx.to_pure_dict(gradient(params))
    for name in ("embedding_VW", "up_WF", "up_bias_F", "down_FD", "down_bias_D"):
        assert jnp.abs(found["text"][name]).max() > 0, name
    used = np.unique(batch["tokens_BLS"][..., -1])
    moved = np.flatnonzero(np.abs(found["text"]["embedding_VW"]).max(-1)) + TEXT_START
    assert set(moved) <= set(used) - {PAD}


CHECKS = (
    every_label_is_the_input_that_follows,
    no_prediction_sees_its_own_frame,
    every_code_is_trained_once,
    every_weight_of_the_text_is_trained,
)
MISTAKES = {
    "labels shifted twice": (Script(labels=shifted_twice), every_label_is_the_input_that_follows),
    "a state that saw its own frame": (Script(score=state_of_its_own_frame), no_prediction_sees_its_own_frame),
    "the last book never trained": (Script(labels=last_book_left_out), every_code_is_trained_once),
    "no projection of the text": (Script(score=text_unprojected), every_weight_of_the_text_is_trained),
}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_training_row_is_right(check, checkpoint, batch):
    check(Script(), checkpoint, batch)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_fails_its_check(mistake, checkpoint, batch):
    script, check = MISTAKES[mistake]
    with pytest.raises(AssertionError):
        check(script, checkpoint, batch)


def test_training_lowers_the_loss_of_every_book_and_of_the_end(checkpoint, batch):
    """By the step of `audiolm train`, from the weights of the checkpoint."""
    spec = checkpoint.spec
    program = training.program(
        spec.model, spec.vocab, PRESETS["data"], OptimizerConfig(learning_rate=3e-3, warmup=0), TrainingConfig(steps=20)
    )
    state = training.init_state(program, jax.random.key(0))
    params = checkpoints.params_of(checkpoint.model)
    state = dataclasses.replace(state, params=jax.tree.map(jnp.copy, params))
    step, arrays = training.jitted(program), {name: jnp.asarray(x)[None] for name, x in batch.items()}
    nll = []
    for _ in range(12):
        fresh = dataclasses.replace(state, sums=jax.tree.map(jnp.zeros_like, state.sums))
        state, metrics = step(fresh, arrays, {})
        nll.append(np.asarray(metrics["sums"]["nll_X"]))
    names = losses.class_names(spec.vocab)
    falls = {name: last < 0.9 * first for name, first, last in zip(names, nll[0], nll[-1], strict=True) if first}
    assert falls == dict.fromkeys([*(f"codebook_{q}" for q in range(Q)), "end"], True), (nll[0], nll[-1])
    moved = nnx.to_pure_dict(nnx.state(checkpoint.model))["text"]["up_WF"] != state.params["text"]["up_WF"]
    assert moved.all()
