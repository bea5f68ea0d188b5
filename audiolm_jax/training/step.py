"""The train step, a pure function of (state, batch)."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from audiolm_jax.errors import InputError
from audiolm_jax.model import checkpoints, losses
from audiolm_jax.model.config import ModelConfig
from audiolm_jax.model.sharding import Rules
from audiolm_jax.model.transformer import Encoded, language_model
from audiolm_jax.serialization.vocab import MASK, Vocab
from audiolm_jax.training.config import OptimizerConfig, TrainingConfig
from audiolm_jax.training.optimizer import make_optimizer, schedule


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """step: number of updates, int32. params: the trained parameters. ema: like params, or {}. key: raw key data of the
    run; step n uses fold_in(key, n). sums: metrics since the last logged step (here, so that a resume loses none).
    """

    step: jax.Array
    params: dict
    ema: dict
    opt_state: Any
    key: jax.Array
    sums: dict


class Adapter:
    """Which weights a run starts from, and which of them it trains. This one: random weights, all of them; another one
    (`families.finetune.Base`) has the same methods."""

    partial = False  # only some parameters of the model are trained

    def prepare(self, workdir: Path) -> None:
        """Writes the files that the finished run needs beside its checkpoints."""

    def load(self, model: ModelConfig, rules: Rules, resumed: bool) -> tuple[Any, dict]:
        """(weights for `init`, frozen arrays for every step). A mesh is entered.

        resumed: the trained parameters come from a checkpoint.
        """
        return None, {}

    def init(self, build: Callable[[jax.Array], dict], weights: Any, key: jax.Array) -> dict:
        """The trained parameters before the first step; build(key) makes random ones of the whole model."""
        return build(key)

    def merge(self, trained: dict, frozen: dict) -> dict:
        """All parameters of the model."""
        return trained

    def encoded(self, frozen: dict, rows: dict[str, jax.Array], rules: Rules) -> Encoded | None:
        """The states that the rows of a batch attend to."""
        return None


SCRATCH = Adapter()


@dataclasses.dataclass(frozen=True)
class Program:
    """The static part of `train_step`. graph: the model without its parameters."""

    model: ModelConfig
    vocab: Vocab
    rules: Rules
    config: TrainingConfig
    tx: optax.GradientTransformation
    schedule: optax.Schedule
    graph: Any
    adapter: Adapter = SCRATCH


def program(
    model: ModelConfig,
    vocab: Vocab,
    rules: Rules,
    optimizer: OptimizerConfig,
    training: TrainingConfig,
    adapter: Adapter = SCRATCH,
) -> Program:
    """The `Program` of a run. A mesh is entered. Raises InputError for codebook_weights of other codebooks."""
    if training.codebook_weights and len(training.codebook_weights) != vocab.codebooks:
        raise InputError(
            f"training.codebook_weights={training.codebook_weights} must have {vocab.codebooks} numbers, one for each "
            "codebook"
        )
    graph = nnx.split(checkpoints.abstract_model(model, vocab, rules))[0]
    tx, rate = make_optimizer(optimizer, training.steps), schedule(optimizer, training.steps)
    return Program(model, vocab, rules, training, tx, rate, graph, adapter)


def init_state(program: Program, key: jax.Array, weights: Any = None) -> TrainState:
    """State before the first step, to be jitted: weights, optimizer state and average are sharded from the start.

    weights: those of `Adapter.load`.
    """

    def build(key: jax.Array) -> dict:
        rngs = nnx.Rngs(params=key)
        return checkpoints.params_of(language_model(program.model, program.vocab, rngs, program.rules))

    params = program.adapter.init(build, weights, key)
    classes = jnp.zeros(len(losses.class_names(program.vocab)))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema=jax.tree.map(jnp.copy, params) if program.config.ema else {},
        opt_state=program.tx.init(params),
        key=jax.random.key_data(jax.random.fold_in(key, 1)),
        sums={"nll_X": classes, "count_X": classes} | {k: jnp.zeros(()) for k in ("total", "weight", "frames")},
    )


def _weights(weights_Q: tuple[float, ...], batch: dict[str, jax.Array], vocab: Vocab) -> jax.Array:
    """The weights of a batch times that of the codebook of each prediction; the end counts as codebook 0, a frame that
    is the end as its codebooks."""
    weights_BLS, heads_BLS = batch["weights_BLS"], batch["heads_BLS"]
    for q, weight in enumerate(weights_Q):
        own_BLS = losses.of_codebook(heads_BLS, q, vocab) | (heads_BLS == vocab.head_of_end + q)
        weights_BLS = jnp.where(own_BLS, weight, 1) * weights_BLS
    return weights_BLS


def train_step(
    state: TrainState, batch: dict[str, jax.Array], frozen: dict, program: Program
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update -> (state, metrics: loss, grad_norm, learning_rate, sums).

    batch: arrays [accumulate, rows, ...]. The loss is the mean of all predictions of the step by their weights, in
    whichever microbatch they are. frozen: the second value of `Adapter.load`.
    """
    config, vocab, rules, adapter = program.config, program.vocab, program.rules, program.adapter
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    batch = batch | {"weights_BLS": _weights(config.codebook_weights, batch, vocab)}
    weight = jnp.maximum(jnp.sum(batch["weights_BLS"]), 1e-9)

    def loss(params: dict, rows: dict, key: jax.Array) -> tuple[jax.Array, dict]:
        model = nnx.merge(program.graph, adapter.merge(params, frozen))
        inputs = (rows[name] for name in ("tokens_BLS", "positions_BL", "segments_BL", "ahead_BL"))
        hidden_BLD = model(*inputs, key, adapter.encoded(frozen, rows, rules))
        parts = losses.scored(model, hidden_BLD, rows, vocab, jax.random.fold_in(key, 1), config.depth_fraction)
        total, sums = losses.loss_and_sums(parts, vocab, config.z_loss)
        tokens = rows["tokens_BLS"][..., : rows["targets_BLS"].shape[-1]]  # without text beside them
        coarse = (tokens >= vocab.code_start) & (tokens < vocab.code_start + vocab.codebook_sizes[0])
        frames = jnp.sum(jnp.any(coarse, axis=-1) | (tokens[..., 0] == MASK), dtype=jnp.float32)
        frames -= jnp.sum(rows["heads_BLS"] == vocab.head_of_end, dtype=jnp.float32)  # frames that are the end
        return total / weight, {"total": total, "frames": frames, **sums}

    gradient = jax.grad(loss, has_aux=True)
    if config.accumulate == 1:
        grads, sums = gradient(state.params, jax.tree.map(lambda x: x[0], batch), key)
    else:

        def add(carry: tuple, rows_and_key: tuple) -> tuple[tuple, None]:
            return jax.tree.map(jnp.add, carry, gradient(state.params, *rows_and_key)), None

        zeros = jax.tree.map(jnp.zeros_like, (state.params, state.sums))
        (grads, sums), _ = jax.lax.scan(add, zeros, (batch, jax.random.split(key, config.accumulate)))

    updates, opt_state = program.tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = state.ema
    if config.ema:
        # A shorter average in the first steps, as in TensorFlow's ExponentialMovingAverage.
        decay = jnp.minimum(config.ema, (1 + state.step) / (10 + state.step))
        ema = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, ema, params)
    fresh = state.step % config.log_every == 0
    interval = jax.tree.map(lambda old, new: jnp.where(fresh, 0, old) + new, state.sums, sums)
    metrics = {
        "loss": sums["total"] / weight,
        "grad_norm": optax.tree.norm(grads),
        "parameter_norm": optax.tree.norm(params),  # finite if every parameter is
        "learning_rate": jnp.asarray(program.schedule(state.step), jnp.float32),
        "sums": interval,
    }
    return TrainState(state.step + 1, params, ema, opt_state, state.key, interval), metrics


def jitted(program: Program, alone: bool = True) -> Callable[..., tuple[TrainState, dict]]:
    """`train_step` jitted, the state donated, as the loop runs it and `audiolm plan` compiles it.

    alone: one process. Several pass one more argument, `processes.flag`, whose maximum is the metric `signal`.
    """

    def with_signal(state: TrainState, batch: dict, frozen: dict, flag_P: jax.Array) -> tuple[TrainState, dict]:
        state, metrics = train_step(state, batch, frozen, program)
        return state, metrics | {"signal": jnp.max(flag_P)}

    return jax.jit(functools.partial(train_step, program=program) if alone else with_signal, donate_argnums=0)
