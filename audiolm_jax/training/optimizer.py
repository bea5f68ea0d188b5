"""AdamW with a learning-rate schedule, as an optax chain."""

from typing import Any

import jax
import optax

from audiolm_jax.training.config import OptimizerConfig

# Parameters without weight decay: gains, biases, and the table whose rows are seen too rarely for it.
NOT_DECAYED = ("scale", "bias", "embedding_VD", "positions_PD")


def schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate of update n (0, 1, ... steps - 1). A warmup longer than the run is cut to it."""
    c = config
    warmup = min(c.warmup, max(steps - 1, 0))
    rest = max(steps - warmup, 1)
    if c.schedule == "cosine":
        after = optax.cosine_decay_schedule(c.learning_rate, rest, alpha=c.final)
    elif c.schedule == "constant":
        after = optax.constant_schedule(c.learning_rate)
    else:
        decay = min(max(round(c.decay_fraction * steps), 1), rest)
        fall = optax.linear_schedule(c.learning_rate, c.final * c.learning_rate, decay)
        after = optax.join_schedules([optax.constant_schedule(c.learning_rate), fall], [rest - decay])
    if not warmup:
        return after
    # The first update already moves: warmup goes from peak/warmup to the peak.
    rise = optax.linear_schedule(c.learning_rate / warmup, c.learning_rate, max(warmup - 1, 1))
    return optax.join_schedules([rise, after], [warmup])


def decayed(params: Any) -> Any:
    """True for every parameter that weight decay shrinks: the matrices, by the last part of their key path."""

    def matrix(path: tuple, _: Any) -> bool:
        name = jax.tree_util.keystr(path[-1:], simple=True)
        return name not in NOT_DECAYED and "_bias_" not in name

    return jax.tree_util.tree_map_with_path(matrix, params)


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Clip by global norm, then AdamW with decoupled weight decay on matrices only."""
    clip = optax.clip_by_global_norm(config.clip) if config.clip else optax.identity()
    adamw = optax.adamw(
        schedule(config, steps),
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=decayed,
    )
    return optax.chain(clip, adamw)
