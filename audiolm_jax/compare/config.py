"""Section `compare` of the configuration."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from audiolm_jax.config import check_names, key, keys_of, validate
from audiolm_jax.errors import InputError
from audiolm_jax.model.config import ModelConfig
from audiolm_jax.serialization import STRATEGIES


@dataclasses.dataclass(frozen=True)
class CompareConfig:
    """The strategies, sizes and seeds of `audiolm compare`, and their budget."""

    strategies: tuple[str, ...] = key(
        ("flat", "delay", "hierarchical", "masked"),
        "Strategies, each trained and measured.",
        among=STRATEGIES,
        filled=True,
    )
    seeds: tuple[int, ...] = key(
        (), "Seeds of the runs of every strategy, such as (0, 1, 2); (): the top-level seed alone.", at_least=0
    )
    sizes: Mapping[str, Mapping[str, Any]] = key(
        {},
        'Sizes by name, each the changed keys of the section model: {"small": {"layers": 2}, "base": {}}. Empty: one '
        "size, that section as it is.",
    )
    equal: str = key(
        "flops",
        "flops: every strategy spends the same training FLOPs. tokens: every strategy is shown the same frames of "
        "audio, per step and in all (data.batch_size and training.steps are those of the first strategy).",
        among=("flops", "tokens"),
    )
    flops: float = key(0.0, "equal=flops: training FLOPs of every run; 0: what training.steps steps take.", at_least=0)
    tolerance: float = key(
        0.05, "Largest difference of parameters, and of what is equal, between strategies, as a fraction.", at_least=0
    )

    def __post_init__(self) -> None:
        validate(self, "compare")
        for name in ("strategies", "seeds"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise InputError(f"compare.{name}={getattr(self, name)} must hold each once")
        if self.flops and self.equal != "flops":
            raise InputError(f"compare.flops={self.flops:g} must be 0 with compare.equal={self.equal}")
        for name, changes in self.sizes.items():
            _check_size(name, changes)


def _check_size(name: str, changes: Mapping[str, Any]) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_.]+", name):
        raise InputError(f"compare.sizes holds the name {name!r}; letters, digits, '_' and '.' make folder names")
    if not isinstance(changes, Mapping | ConfigDict):
        raise InputError(f"compare.sizes.{name}={changes!r} must map keys of the section model to values")
    check_names(changes, ModelConfig, f"compare.sizes.{name}")
    for attribute, value in changes.items():
        keys_of(ModelConfig, f"compare.sizes.{name}")[attribute].check(value)
