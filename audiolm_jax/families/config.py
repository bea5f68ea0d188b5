"""Section `finetune` of the configuration."""

import dataclasses

from ml_collections import ConfigDict

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


def configured(config: ConfigDict) -> ConfigDict:
    """The configuration with everything that a run it starts from decides (`finetune.configured`)."""
    if not config.finetune.base and not config.lora.rank:
        return config
    from audiolm_jax.families import finetune  # late: other runs need no family

    return finetune.configured(config)
