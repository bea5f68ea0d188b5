"""Section `finetune` of the configuration."""

import dataclasses

from audiolm_jax.config import key, validate


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
    """Start from the weights of a published checkpoint instead of random ones."""

    base: str = key(
        "",
        "Workdir that `audiolm import` made; empty: random weights. Model, order and codec are then those of the "
        "checkpoint, for `audiolm prepare` too.",
    )

    def __post_init__(self) -> None:
        validate(self, "finetune")
