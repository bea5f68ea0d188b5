"""AdamW with a learning-rate schedule, as an optax chain."""

import dataclasses
from typing import Any

import jax
import optax

from audiolm_jax.errors import InputError

# Parameters without weight decay: gains, biases, and the table whose rows are seen too rarely for it.
NOT_DECAYED = ("scale", "bias", "embedding_VD", "positions_PD")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (arXiv 1711.05101) and its schedule: linear warmup to `learning_rate`, then `schedule`."""

    learning_rate: float = 2e-3  # at the peak
    schedule: str = "cosine"  # cosine | constant | wsd (stay at the peak, then fall linearly, arXiv 2404.06395)
    warmup: int = 20  # steps
    decay_fraction: float = 0.3  # of all steps: the last part of wsd
    final: float = 0.05  # last learning rate, as a fraction of the peak
    b1: float = 0.9
    b2: float = 0.98
    eps: float = 1e-8
    weight_decay: float = 0.05
    clip: float = 1.0  # global gradient norm; 0: not clipped

    def __post_init__(self) -> None:
        if self.schedule not in ("cosine", "constant", "wsd"):
            raise InputError(
                f"optimizer.schedule={self.schedule!r} is unknown; choose one of 'cosine', 'constant', 'wsd'"
            )
        for name, low, high in (("b1", 0, 1), ("b2", 0, 1), ("final", 0, 1), ("decay_fraction", 0, 1)):
            if not low <= getattr(self, name) <= high:
                raise InputError(f"optimizer.{name}={getattr(self, name)} must be in [{low}, {high}]")
        for name in ("learning_rate", "eps"):
            if not getattr(self, name) > 0:
                raise InputError(f"optimizer.{name}={getattr(self, name)} must be greater than 0")
        for name in ("warmup", "weight_decay", "clip"):
            if not getattr(self, name) >= 0:
                raise InputError(f"optimizer.{name}={getattr(self, name)} must not be negative")


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


def make(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
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
