"""Two channels by a mono codec: codebooks 2q and 2q + 1 are codebook q of the left and of the right channel.

The codes of the stereo versions of MusicGen (arXiv 2306.05284, section 4.4). The mono codec sees the channels as the
rows of a batch of twice the size, M = 2B, so its promises hold.
"""

import dataclasses
from typing import Any

import numpy as np

from audiolm_jax.codecs import checks, encodec
from audiolm_jax.codecs.streaming import About
from audiolm_jax.errors import InputError

SAME = ("fingerprint", "sample_rate", "hop", "frame_rate", "codebook_size", "delay", "block", "frames", "samples")


class Stereo:
    """The contract in `audiolm_jax.codecs`, from a codec with one channel."""

    def __init__(self, mono: Any):
        if mono.channels != 1:
            raise InputError(f"codec: {mono.name} has {mono.channels} channels; a mono codec is needed")
        vars(self).update({name: getattr(mono, name) for name in SAME})
        self.mono, self.name, self.channels, self.codebooks = mono, f"{mono.name}_stereo", 2, 2 * mono.codebooks

    def encode(self, waveform_BN, samples_B=None) -> np.ndarray:
        audio_BNC, alone = checks.waveform(waveform_BN, 2)
        codes_BTQ = joined(self.mono.encode(rows(audio_BNC.swapaxes(1, 2)), doubled(samples_B)))
        return codes_BTQ[0] if alone else codes_BTQ

    def decode(self, codes_BTQ, frames_B=None) -> np.ndarray:
        codes = np.asarray(codes_BTQ)
        alone = codes.ndim == 2
        waveform = stereo(self.mono.decode(split(codes[None] if alone else codes), doubled(frames_B)))
        return waveform[0] if alone else waveform

    def encode_init(self, batch: int) -> Any:
        return self.mono.encode_init(2 * batch)

    def encode_step(self, state, waveform_BN) -> tuple[np.ndarray, Any]:
        codes_BTQ, state = self.mono.encode_step(state, rows(np.asarray(waveform_BN)))
        return joined(codes_BTQ), state

    def encode_end(self, state, waveform_BN=None) -> np.ndarray | None:
        rest = self.mono.encode_end(state, None if waveform_BN is None else rows(np.asarray(waveform_BN)))
        return None if rest is None else joined(rest)

    def decode_init(self, batch: int) -> Any:
        return self.mono.decode_init(2 * batch)

    def decode_step(self, state, codes_BTQ) -> tuple[np.ndarray, Any]:
        waveform, state = self.mono.decode_step(state, split(np.asarray(codes_BTQ)))
        return stereo(waveform), state

    def decode_end(self, state, codes_BTQ=None) -> np.ndarray | None:
        rest = self.mono.decode_end(state, None if codes_BTQ is None else split(np.asarray(codes_BTQ)))
        return None if rest is None else stereo(rest)


def rows(audio_BCN: np.ndarray) -> np.ndarray:
    """[B, 2, N] -> [2B, N]: left, right, left, right ..."""
    return audio_BCN.reshape(-1, audio_BCN.shape[-1])


def stereo(audio_MN: np.ndarray) -> np.ndarray:
    """[2B, N] -> [B, 2, N]."""
    return audio_MN.reshape(len(audio_MN) // 2, 2, audio_MN.shape[-1])  # N may be 0


def split(codes_BTQ: np.ndarray) -> np.ndarray:
    """[B, T, 2q] -> [2B, T, q]. Raises InputError if there is an odd codebook."""
    if codes_BTQ.ndim != 3 or codes_BTQ.shape[-1] % 2:
        raise InputError(f"codes: shape {codes_BTQ.shape}; stereo codes are [batch, frames, 2 per codebook]")
    B, T, Q = codes_BTQ.shape
    return codes_BTQ.reshape(B, T, Q // 2, 2).transpose(0, 3, 1, 2).reshape(2 * B, T, Q // 2)


def joined(codes_MTQ: np.ndarray) -> np.ndarray:
    """[2B, T, q] -> [B, T, 2q]."""
    M, T, Q = codes_MTQ.shape
    return codes_MTQ.reshape(M // 2, 2, T, Q).transpose(0, 2, 3, 1).reshape(M // 2, T, 2 * Q)


def doubled(lengths_B) -> np.ndarray | None:
    return None if lengths_B is None else np.repeat(np.asarray(lengths_B), 2)


CHECKPOINTS = {name: config for name, config in encodec.CHECKPOINTS.items() if config.audio_channels == 1}


def about(config: encodec.EnCodecConfig, codebooks: int | None = None) -> About:
    """The attributes of two channels by that codec. Raises InputError for a wrong number of codebooks."""
    mono = encodec.about(config, half(codebooks))
    return dataclasses.replace(mono, name="encodec_stereo", channels=2, codebooks=2 * mono.codebooks)


def load(path=None, codebooks: int | None = None) -> Stereo:
    """EnCodec of one channel for two; `codebooks` counts those of both. Raises InputError."""
    return Stereo(encodec.load(path, half(codebooks)))


def half(codebooks: int | None) -> int | None:
    """The codebooks of one channel. Raises InputError for an odd number."""
    if codebooks is not None and codebooks % 2:
        raise InputError(f"codec.codebooks: {codebooks} asked for; two channels have an even number of them")
    return None if codebooks is None else codebooks // 2
