"""AdamW with a learning-rate schedule, as an optax chain."""

from typing import Any

import jax
import optax

from audiolm_jax.training.config import OptimizerConfig

# Parameters without weight decay: gains, biases, and tables, whose rows occur too rarely for it.
NOT_DECAYED = (
    "scale",
    "q_norm_K",
    "k_norm_K",
    "bias",
    "embedding_VD",
    "embedding_VW",
    "positions_PD",
    "embedding_Rd",  # of a depth network, as the next
    "positions_nd",
)


def schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate of update n (0, 1, ... steps - 1). The warmup is at most as long as the run."""
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
    # From peak/warmup, so that the first update changes the parameters.
    rise = optax.linear_schedule(c.learning_rate / warmup, c.learning_rate, max(warmup - 1, 1))
    return optax.join_schedules([rise, after], [warmup])


def decayed(params: Any) -> Any:
    """True for every parameter with weight decay, the matrices, by the last part of their key path."""

    def matrix(path: tuple, _: Any) -> bool:
        name = jax.tree_util.keystr(path[-1:], simple=True)
        return name not in NOT_DECAYED and "_bias_" not in name

    return jax.tree_util.tree_map_with_path(matrix, params)


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Clip by global norm, then AdamW with decoupled weight decay on matrices only."""
    clip = optax.clip_by_global_norm(config.clip) if config.clip else optax.identity()
    options = {name: getattr(config, name) for name in ("b1", "b2", "eps", "weight_decay")}
    return optax.chain(clip, optax.adamw(schedule(config, steps), **options, mask=decayed))
