"""Section `evaluation` of the configuration."""

import dataclasses

from audiolm_jax.config import key, validate

METHODS = ("auto", "exact", "bound")  # likelihoods of masked models


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """The measurements of a trained run."""

    split: str = key("test", "Split of the token data set: test, unseen (other voices), valid or train.")
    also: tuple[str, ...] = key((), "audiolm compare: further splits whose likelihood is measured, such as (unseen,).")
    utterances: int = key(0, "Utterances scored by likelihood, spread evenly over the split; 0: all.", at_least=0)
    method: str = key(
        "auto",
        "Likelihood of masked models: bound (any order), exact (the fixed order), auto (bound where there is a "
        "choice).",
        among=METHODS,
    )
    draws: int = key(4, "Random subsets per utterance and codebook, for the bound.", at_least=1)
    sentences: int = key(24, "Held-out sentences that are spoken and transcribed.", at_least=1)
    batch: int = key(8, "Sentences spoken at once.", at_least=1)
    timed: int = key(3, "Sentences spoken alone and timed.", at_least=1)
    repeats: int = key(3, "Times each of them is timed, after one warm-up.", at_least=1)
    heard: int = key(4, "Sentences to listen to in the report.", at_least=0)
    recogniser: str = key("", "Weights of the recogniser; empty: those that ship with the package.")

    def __post_init__(self) -> None:
        validate(self, "evaluation")
