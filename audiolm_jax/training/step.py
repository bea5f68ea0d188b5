"""The train step, a pure function of (state, batch)."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from audiolm_jax.families.finetune import Base
from audiolm_jax.model import checkpoints, losses
from audiolm_jax.model.sharding import Rules
from audiolm_jax.model.transformer import ModelConfig, Transformer
from audiolm_jax.serialization.vocab import CODE_START, MASK, Vocab
from audiolm_jax.training import optimizer as optimizers
from audiolm_jax.training.config import TrainingConfig


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """step: updates made, int32. ema: like params, or {}. key: raw key data of the run; step n uses
    fold_in(key, n). sums: metrics since the last logged step (in the state, so that a resume loses none)."""

    step: jax.Array
    params: dict
    ema: dict
    opt_state: Any
    key: jax.Array
    sums: dict


def init_state(
    config: TrainingConfig, params: dict, tx: optax.GradientTransformation, vocab: Vocab, key: jax.Array
) -> TrainState:
    """State before the first step; optimizer state and average are laid out like the parameters."""
    classes = jnp.zeros(len(losses.class_names(vocab)))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema=jax.tree.map(jnp.copy, params) if config.ema else {},
        opt_state=tx.init(params),
        key=jax.random.key_data(key),
        sums={"nll_X": classes, "count_X": classes} | {k: jnp.zeros(()) for k in ("total", "weight", "frames")},
    )


def train_step(
    state: TrainState,
    batch: dict[str, jax.Array],
    frozen: dict | None = None,
    *,
    graph: Any,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    config: TrainingConfig,
    vocab: Vocab,
    rules: Rules,
    base: Base | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update. batch: arrays [accumulate, rows, ...]; every prediction of the step weighs by its weight over the
    sum of all weights, whichever microbatch it is in. frozen: what a run that starts from `base` reads and does not
    change. Metrics: loss, grad_norm, learning_rate, sums."""
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    weight = jnp.maximum(jnp.sum(batch["weights_BLS"]), 1e-9)

    def loss(params: dict, rows: dict, key: jax.Array) -> tuple[jax.Array, dict]:
        model = nnx.merge(graph, params if base is None else base.whole(params, frozen))
        encoded = None if base is None else base.encoded(frozen, rows, rules)
        inputs = (rows[name] for name in ("tokens_BLS", "positions_BL", "segments_BL", "ahead_BL"))
        hidden_BLD = model(*inputs, key, encoded)
        total, sums = losses.loss_and_sums(hidden_BLD, model.output_DV(), rows, vocab, rules, config.z_loss)
        tokens = rows["tokens_BLS"]
        coarse = (tokens >= CODE_START) & (tokens < CODE_START + vocab.codebook_size)
        frames = jnp.sum(jnp.any(coarse, axis=-1) | (tokens[..., 0] == MASK), dtype=jnp.float32)
        return total / weight, {"total": total, "frames": frames, **sums}

    gradient = jax.grad(loss, has_aux=True)
    if config.accumulate == 1:
        grads, sums = gradient(state.params, jax.tree.map(lambda x: x[0], batch), key)
    else:

        def add(carry: tuple, rows_and_key: tuple) -> tuple[tuple, None]:
            return jax.tree.map(jnp.add, carry, gradient(state.params, *rows_and_key)), None

        zeros = jax.tree.map(jnp.zeros_like, (state.params, state.sums))
        (grads, sums), _ = jax.lax.scan(add, zeros, (batch, jax.random.split(key, config.accumulate)))

    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = state.ema
    if config.ema:
        # Early on the average covers only what there is (as in TensorFlow's ExponentialMovingAverage).
        decay = jnp.minimum(config.ema, (1 + state.step) / (10 + state.step))
        ema = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, ema, params)
    fresh = state.step % config.log_every == 0
    interval = jax.tree.map(lambda old, new: jnp.where(fresh, 0, old) + new, state.sums, sums)
    metrics = {
        "loss": sums["total"] / weight,
        "grad_norm": optax.tree.norm(grads),
        "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
        "sums": interval,
    }
    return TrainState(state.step + 1, params, ema, opt_state, state.key, interval), metrics


def _asking_all(update: Callable) -> Callable:
    """`update` with one more argument, `distributed.flag`, and among its metrics the largest of these numbers."""

    def step(state: TrainState, batch: dict, frozen: dict, flag_P: jax.Array) -> tuple[TrainState, dict]:
        state, metrics = update(state, batch, frozen)
        return state, metrics | {"signal": jnp.max(flag_P)}

    return step


def initialiser(
    model: ModelConfig,
    vocab: Vocab,
    rules: Rules,
    training: TrainingConfig,
    tx: optax.GradientTransformation,
    base: Base | None = None,
) -> tuple[Any, Callable[..., TrainState]]:
    """The model's static part and the function (key, weights of the base) -> first state; jitted, weights are born
    sharded."""

    def build(key: jax.Array) -> Transformer:
        return Transformer(model, vocab.size, nnx.Rngs(params=key), rules)

    graph = nnx.split(jax.eval_shape(lambda: build(jax.random.key(0))))[0]

    def init(key: jax.Array, given: dict | None = None) -> TrainState:
        params = checkpoints.params_of(build(key)) if base is None else base.trained(given, key)
        return init_state(training, params, tx, vocab, jax.random.fold_in(key, 1))

    return graph, init


def step_program(
    graph: Any,
    tx: optax.GradientTransformation,
    optimizer: optimizers.OptimizerConfig,
    training: TrainingConfig,
    vocab: Vocab,
    rules: Rules,
    alone: bool = True,
    base: Base | None = None,
) -> Callable[..., tuple[TrainState, dict]]:
    """`train_step` jitted, the state donated: what the loop runs, and what `audiolm plan` compiles ahead of time.

    alone: one process. Several take one more argument each, of `_asking_all`.
    """
    schedule = optimizers.schedule(optimizer, training.steps)
    fixed = {"graph": graph, "tx": tx, "schedule": schedule, "config": training, "vocab": vocab, "rules": rules}
    update = functools.partial(train_step, **fixed, base=base)
    return jax.jit(update if alone else _asking_all(update), donate_argnums=0)
