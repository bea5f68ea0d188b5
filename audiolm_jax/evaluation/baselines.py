"""What the codes cost without a network: uniform and unigram codes, in bits per second of audio.

A model that is not far below the unigram has learnt nothing about time. Each codebook has a table of its own, counted
on the training split; how much it is smoothed is chosen there too, by the leave-one-out likelihood (every code is
predicted from the counts of all others; Ney, Essen and Kneser 1995, doi 10.1109/34.476512), so that nothing is fitted
to the speech it is evaluated on.
"""

from collections.abc import Sequence

import numpy as np

from audiolm_jax.errors import InputError
from audiolm_jax.evaluation.likelihood import Likelihood

# Candidates for the weight of what is smoothed towards.
SMOOTHING = np.geomspace(1e-3, 1e4, 57)


def uniform_bits_per_second(codebooks: int, codebook_size: int | Sequence[int], frame_rate: float) -> float:
    """The codec's own bit rate: every code equally likely. codebook_size: of all codebooks, or of each."""
    return float(codebooks * np.mean(np.log2(codebook_size)) * frame_rate)


def unigram(
    train: Sequence[np.ndarray], held_out: Sequence[np.ndarray], codebook_size: int | Sequence[int], frame_rate: float
) -> Likelihood:
    """Each code by its frequency in its codebook, additively smoothed.

    Args:
      train, held_out: codes [T, Q] of each utterance.
      codebook_size: of all codebooks, or of each.

    Raises InputError for no training frames, no held-out utterances, codes out of range.
    """
    pooled_NQ = _pooled(train, held_out, codebook_size)
    sizes_Q = np.broadcast_to(codebook_size, pooled_NQ.shape[1])
    nats_KQ = np.zeros((sizes_Q.max(), len(sizes_Q)))
    for q, size in enumerate(sizes_Q):
        nats_KQ[:size, q] = -np.log(_frequencies(pooled_NQ[:, q], size))
    nats_UQ = [np.take_along_axis(nats_KQ, codes_TQ, axis=0).sum(axis=0) for codes_TQ in held_out]
    return _likelihood(nats_UQ, held_out, frame_rate)


def _pooled(
    train: Sequence[np.ndarray], held_out: Sequence[np.ndarray], codebook_size: int | Sequence[int]
) -> np.ndarray:
    if not sum(len(codes_TQ) for codes_TQ in train):
        raise InputError("there are no training frames to count codes in; there must be at least 1")
    if not held_out or not all(len(codes_TQ) for codes_TQ in held_out):
        raise InputError("there are no held-out utterances, or one without frames; each must have at least 1 frame")
    for codes_TQ in (*train, *held_out):
        sizes_TQ = np.broadcast_to(codebook_size, codes_TQ.shape)
        wrong = (codes_TQ < 0) | (codes_TQ >= sizes_TQ)
        if wrong.any():
            bad, size = codes_TQ[wrong][0], sizes_TQ[wrong][0]
            raise InputError(f"code {bad} is out of range; codes must lie in 0..{size - 1}")
    return np.concatenate(list(train))


def _frequencies(codes_N: np.ndarray, codebook_size: int) -> np.ndarray:
    """[K] probabilities: counts plus one number for every code."""
    count_K = np.bincount(codes_N, minlength=codebook_size)
    uniform = 1 / codebook_size
    seen = count_K > 0
    weight = _smoothing(count_K[seen], np.full(seen.sum(), len(codes_N)), np.full(seen.sum(), uniform))
    return (count_K + weight * uniform) / (len(codes_N) + weight)


def _smoothing(count_P: np.ndarray, total_P: np.ndarray, prior_P: np.ndarray) -> float:
    """The weight w of a prior under which (count - 1 + w prior) / (total - 1 + w) is likeliest, summed over counts."""
    scores = [
        (count_P * np.log((count_P - 1 + w * prior_P) / np.maximum(total_P - 1 + w, 1e-12))).sum() for w in SMOOTHING
    ]
    return float(SMOOTHING[int(np.argmax(scores))])


def _likelihood(nats_UQ: Sequence[np.ndarray], held_out: Sequence[np.ndarray], frame_rate: float) -> Likelihood:
    bits_UQ = np.asarray(nats_UQ) / np.log(2)
    nothing_U = np.zeros(len(held_out))
    return Likelihood(
        tag="exact",
        frame_rate=frame_rate,
        frames_U=np.array([len(codes_TQ) for codes_TQ in held_out]),
        code_bits_UQ=bits_UQ,
        code_variance_UQ=np.zeros_like(bits_UQ),
        end_bits_U=nothing_U,
        length_bits_U=nothing_U,
    )
