"""Sections `optimizer` and `training` of the configuration."""

import dataclasses

from audiolm_jax.config import key, validate


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (arXiv 1711.05101): linear warmup to `learning_rate`, then `schedule`."""

    learning_rate: float = key(2e-3, "Learning rate at the peak.", above=0)
    schedule: str = key(
        "cosine",
        "After the warmup: cosine, constant, or wsd (stay at the peak, then fall linearly, arXiv 2404.06395).",
        among=("cosine", "constant", "wsd"),
    )
    warmup: int = key(20, "Steps until the peak.", at_least=0)
    decay_fraction: float = key(
        0.3, "wsd: the last fraction of the steps, in which the rate falls.", at_least=0, at_most=1
    )
    final: float = key(0.05, "Last learning rate, as a fraction of the peak.", at_least=0, at_most=1)
    b1: float = key(0.9, "Decay of the average of gradients.", at_least=0, at_most=1)
    b2: float = key(0.98, "Decay of the average of squared gradients.", at_least=0, at_most=1)
    eps: float = key(1e-8, "Added to the denominator of the update.", above=0)
    weight_decay: float = key(0.05, "Decoupled weight decay, on matrices only.", at_least=0)
    clip: float = key(1.0, "Global norm to which gradients are clipped; 0: not clipped.", at_least=0)

    def __post_init__(self) -> None:
        validate(self, "optimizer")


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """How long to train, how often to log and to save; intervals in steps."""

    steps: int = key(200, "Updates of the parameters.", at_least=1)
    accumulate: int = key(
        1, "Microbatches per step, computed one after the other; together they are a batch.", at_least=1
    )
    ema: float = key(
        0.0,
        "Decay of the moving average of the parameters, which inference then uses; 0: none.",
        at_least=0,
        below=1,
    )
    z_loss: float = key(0.0, "Weight of the squared log-normalisers in the loss.", at_least=0)
    codebook_weights: tuple[float, ...] = key(
        (),
        "Weight of each codebook in the loss, such as (31, 1, ...) of CSM and (100, 1, ...) of Moshi; (): 1. Bits are "
        "never weighted.",
        above=0,
    )
    depth_fraction: float = key(
        1.0,
        "Fraction of the positions of a row, drawn anew in every step, on which the depth network is trained.",
        above=0,
        at_most=1,
    )
    log_every: int = key(10, "Steps between lines of metrics.", at_least=1)
    checkpoint_every: int = key(100, "Steps between checkpoints.", at_least=1)
    keep: int = key(1, "Number of latest checkpoints to keep.", at_least=1)
    probe_every: int = key(
        0, "Steps between audio samples for TensorBoard: two held-out sentences; 0: none.", at_least=0
    )
    evaluate_every: int = key(
        0, "Steps between likelihoods of the split valid (evaluation.utterances of it); 0: none.", at_least=0
    )
    profile_steps: int = key(
        0,
        "Steps to trace with jax.profiler, from the third on, into WORKDIR/profile, which `xprof --logdir` or "
        "TensorBoard shows; 0: none.",
        at_least=0,
    )
    init_from: str = key(
        "",
        "Workdir of a run, or a file exported from one, whose weights training starts from; empty: random weights.",
    )
    peak_tflops: float = key(0.0, "Peak TFLOP/s of one device, for the MFU; 0: from a table, or measured.", at_least=0)

    def __post_init__(self) -> None:
        validate(self, "training")
