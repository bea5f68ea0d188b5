"""Bits per second of audio of the codes without a network: uniform and unigram.

A model that is not far below the unigram has learnt nothing about time. Each codebook has a table of its own, counted
on the training split; how much it is smoothed is chosen there too, by the leave-one-out likelihood (every code is
predicted from the counts of all others; Ney, Essen and Kneser 1995, doi 10.1109/34.476512), so that nothing is fitted
to the speech it is evaluated on.
"""

from collections.abc import Sequence

import numpy as np

from audiolm_jax.errors import InputError
from audiolm_jax.evaluation.likelihood import Likelihood

# Candidates for the weight of the uniform distribution, in counts.
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
    if not sum(len(codes_TQ) for codes_TQ in train):
        raise InputError("there are no training frames to count codes in; there must be at least 1")
    if not held_out or not all(len(codes_TQ) for codes_TQ in held_out):
        raise InputError("there are no held-out utterances, or one without frames; each must have at least 1 frame")
    for codes_TQ in (*train, *held_out):
        sizes_TQ = np.broadcast_to(codebook_size, codes_TQ.shape)
        wrong = (codes_TQ < 0) | (codes_TQ >= sizes_TQ)
        if wrong.any():
            code, size = codes_TQ[wrong][0], sizes_TQ[wrong][0]
            raise InputError(f"code {code} is out of range; codes must lie in 0..{size - 1}")
    codes_NQ = np.concatenate(list(train))
    sizes_Q = np.broadcast_to(codebook_size, codes_NQ.shape[1])
    nats_KQ = np.zeros((sizes_Q.max(), len(sizes_Q)))
    for q, size in enumerate(sizes_Q):
        nats_KQ[:size, q] = -np.log(_frequencies(codes_NQ[:, q], size))
    nats_UQ = [np.take_along_axis(nats_KQ, codes_TQ, axis=0).sum(axis=0) for codes_TQ in held_out]
    bits_UQ = np.asarray(nats_UQ) / np.log(2)
    zeros_U = np.zeros(len(held_out))
    return Likelihood(
        tag="exact",
        frame_rate=frame_rate,
        frames_U=np.array([len(codes_TQ) for codes_TQ in held_out]),
        code_bits_UQ=bits_UQ,
        code_variance_UQ=np.zeros_like(bits_UQ),
        end_bits_U=zeros_U,
        length_bits_U=zeros_U,
    )


def _frequencies(codes_N: np.ndarray, codebook_size: int) -> np.ndarray:
    """[K] probabilities: counts plus one number for every code, the likeliest of SMOOTHING under leave-one-out."""
    count_K = np.bincount(codes_N, minlength=codebook_size)
    total, uniform = len(codes_N), 1 / codebook_size
    seen = count_K[count_K > 0]
    # Each code from the counts of all others: (count - 1 + w / K) / (total - 1 + w), for each w.
    scores = [(seen * np.log((seen - 1 + w * uniform) / np.maximum(total - 1 + w, 1e-12))).sum() for w in SMOOTHING]
    weight = float(SMOOTHING[int(np.argmax(scores))])
    return (count_K + weight * uniform) / (total + weight)
