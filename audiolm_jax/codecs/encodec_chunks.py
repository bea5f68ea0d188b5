"""A codec that works on overlapping seconds, each normalised by its own loudness (EnCodec 48 kHz).

A signal is zero-padded to complete chunks (as by the published feature extractor; the reference encodes one more chunk,
of silence, on which nothing before the end depends). Every chunk has the same number of frames, and decoded chunks are
cross-faded. The loudness of a chunk is not a code: `encode_scaled` returns it with the codes and `decode` takes it;
without it every chunk gets the loudness LEVEL.
"""

from collections.abc import Callable

import numpy as np

from audiolm_jax.codecs import checks
from audiolm_jax.codecs.streaming import About, joined, outside, own_mesh, row_groups
from audiolm_jax.errors import InputError

TOGETHER = 8  # rows of chunks in one call
LEVEL = 0.1  # default root mean square of a chunk: -20 dB of full scale


class ChunkedCodec:
    """The contract in `audiolm_jax.codecs`, with frames in chunks of `block`: see `frames` and `samples`."""

    def __init__(self, about: About, encode: Callable, decode: Callable, chunk: int, stride: int, normalize, config):
        """encode(waveform [B, chunk, channels], n_B) -> codes [B, block, Q]; decode(codes, n_B) -> waveform."""
        vars(self).update(vars(about))
        self.chunk, self.stride, self.normalize, self.config = chunk, stride, normalize, config
        self.block = -(-chunk // self.hop)  # frames per chunk
        self.frame_rate = self.block * self.sample_rate / stride
        self._encode, self._decode = encode, decode
        # A triangular cross-fade, as in the reference.
        self._fade_N = 0.5 - np.abs(np.linspace(0, 1, chunk + 2, dtype=np.float32)[1:-1] - 0.5)

    def frames(self, samples: int) -> int:
        """Frames of `samples` samples: those of all chunks that begin before the end."""
        return -(-int(samples) // self.stride) * self.block

    def samples(self, frames: int) -> int:
        """Samples that `frames` frames are decoded to."""
        if not frames:
            return 0
        before = (frames - 1) // self.block
        return before * self.stride + min(self.chunk, (frames - before * self.block) * self.hop)

    def encode(self, waveform_BN, samples_B=None) -> np.ndarray:
        """`[B, channels, N]` (or `[channels, N]`) -> codes `[B, T, Q]` (or `[T, Q]`), T = frames(N)."""
        return self.encode_scaled(waveform_BN, samples_B)[0]

    def encode_scaled(self, waveform_BN, samples_B=None) -> tuple[np.ndarray, np.ndarray]:
        """See `encode`; and the loudness of every chunk `[B, chunks]` (or `[chunks]`)."""
        audio_BNC, alone = checks.waveform(waveform_BN, self.channels)
        ends_B = checks.lengths(samples_B, *audio_BNC.shape[:2], "samples")
        exists_BN = np.arange(audio_BNC.shape[1]) < ends_B[:, None]
        audio_BNC = np.where(exists_BN[..., None], audio_BNC, 0)
        codes_BTQ, scales_BC = self._encode_chunks(audio_BNC)
        exists_BT = np.arange(codes_BTQ.shape[1]) < (-(-ends_B // self.stride) * self.block)[:, None]
        codes_BTQ = np.where(exists_BT[..., None], codes_BTQ, 0)
        return (codes_BTQ[0], scales_BC[0]) if alone else (codes_BTQ, scales_BC)

    def decode(self, codes_BTQ, frames_B=None, scales_BC=None) -> np.ndarray:
        """Codes `[B, T, q <= Q]` (or `[T, q]`) -> samples `[B, channels, samples(T)]` (or without B).

        scales_BC: the loudness of every chunk as `encode_scaled` gives it; None: LEVEL for all.
        """
        grid, alone = checks.codes(codes_BTQ, self.codebooks, self.codebook_size)
        ends_B = checks.lengths(frames_B, *grid.shape[:2], "frames")
        wanted = (len(grid), -(-grid.shape[1] // self.block))
        scales_BC = np.full(wanted, self._level) if scales_BC is None else np.atleast_2d(scales_BC)
        if scales_BC.shape != wanted:
            raise InputError(f"scales: shape {scales_BC.shape}; one per chunk, {wanted}, is needed")
        tail, pieces = None, []
        for n, scale_B in enumerate(scales_BC.T):
            start = n * self.block
            piece, tail = self._decode_chunk(grid[:, start : start + self.block], ends_B - start, scale_B, tail)
            pieces.append(piece)
        waveform_BNC = np.concatenate([*pieces, faded(*tail)], axis=1)[:, : self.samples(grid.shape[1])]
        waveform = outside(waveform_BNC)
        return waveform[0] if alone else waveform

    def encode_init(self, batch: int) -> dict:
        """The streaming state before the first sample; `scales` grows by the loudness `[B, n]` of the next n chunks."""
        return {"waiting": None, "scales": []}

    def encode_step(self, state: dict, waveform_BN) -> tuple[np.ndarray, dict]:
        """The next samples (a multiple of hop) -> (the codes of the chunks that they complete, state)."""
        audio_BNC, _ = checks.waveform(waveform_BN, self.channels, multiple_of=self.hop)
        waiting, scales = joined(state["waiting"], audio_BNC), list(state["scales"])
        chunks = [np.zeros((len(waiting), 0, self.codebooks), np.int32)]
        while waiting.shape[1] >= self.chunk:
            codes, scale = self._encode_chunk(waiting[:, : self.chunk])
            chunks.append(codes)
            scales.append(scale)
            waiting = waiting[:, self.stride :]
        return np.concatenate(chunks, axis=1), {"waiting": waiting, "scales": scales}

    def encode_end(self, state: dict, waveform_BN=None) -> np.ndarray | None:
        """The last `N < hop` samples, or none -> the codes of all that is left over."""
        more = None if waveform_BN is None else checks.waveform(waveform_BN, self.channels)[0]
        waiting = joined(state["waiting"], more)
        if waiting is None or not waiting.shape[1]:
            return None
        codes, scales = self._encode_chunks(waiting)
        state["scales"].append(scales)
        return codes

    def decode_init(self, batch: int, scales_BC=None) -> dict:
        """The streaming state before the first frame. scales_BC: the loudness of all chunks, None: LEVEL."""
        return {"waiting": None, "tail": None, "scales": None if scales_BC is None else np.asarray(scales_BC)}

    def decode_step(self, state: dict, codes_BTQ) -> tuple[np.ndarray, dict]:
        """The next frames -> (the samples that no later chunk changes, state)."""
        grid, _ = checks.codes(codes_BTQ, self.codebooks, self.codebook_size)
        waiting, tail, scales = joined(state["waiting"], grid), state["tail"], state["scales"]
        pieces = [np.zeros((len(waiting), 0, self.channels), np.float32)]
        while waiting.shape[1] >= self.block:
            scale_B, scales = (None, None) if scales is None else (scales[:, 0], scales[:, 1:])
            piece, tail = self._decode_chunk(waiting[:, : self.block], None, scale_B, tail)
            pieces.append(piece)
            waiting = waiting[:, self.block :]
        return outside(np.concatenate(pieces, axis=1)), {"waiting": waiting, "tail": tail, "scales": scales}

    def decode_end(self, state: dict) -> np.ndarray | None:
        """The samples still to come after the last frame, None if there are none."""
        waiting, tail, pieces = state["waiting"], state["tail"], []
        frames = 0 if waiting is None else waiting.shape[1]
        if frames:
            scale_B = None if state["scales"] is None else state["scales"][:, 0]
            piece, tail = self._decode_chunk(waiting, None, scale_B, tail)
            pieces.append(piece)
        if tail is None:
            return None
        length = self.samples(frames) if frames else self.chunk - self.stride
        return outside(np.concatenate([*pieces, faded(*tail)], axis=1)[:, :length])

    @property
    def _level(self) -> np.float32:
        return np.float32(LEVEL if self.normalize else 1)

    def _encode_chunks(self, audio_BNC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All of a signal -> codes [B, T, Q] and loudness [B, chunks]. Chunks are independent: several at a time."""
        starts, each = range(0, audio_BNC.shape[1], self.stride), max(1, TOGETHER // len(audio_BNC))
        missing = starts[-1] + self.chunk - audio_BNC.shape[1]
        audio_BNC = np.pad(audio_BNC, ((0, 0), (0, missing), (0, 0)))
        groups = []
        for first in range(0, len(starts), each):
            pieces = [audio_BNC[:, start : start + self.chunk] for start in starts[first : first + each]]
            encoded = self._encode_chunk(np.concatenate(pieces))
            groups.append([np.concatenate(np.split(x, len(pieces)), axis=1) for x in encoded])
        codes, scales = (np.concatenate(parts, axis=1) for parts in zip(*groups, strict=True))
        return codes, scales

    def _encode_chunk(self, audio_BNC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """One chunk -> codes [B, block, Q] and loudness [B, 1]."""
        mono_BN = audio_BNC.mean(axis=2)
        loudness_B1 = np.sqrt((mono_BN**2).mean(axis=1, keepdims=True)) + np.float32(1e-8)
        scale_B1 = loudness_B1 if self.normalize else np.ones_like(loudness_B1)
        codes = run(self._encode, audio_BNC / scale_B1[..., None], np.full(len(audio_BNC), self.chunk))
        return codes, scale_B1

    def _decode_chunk(self, grid_BFQ: np.ndarray, n_B, scale_B, tail) -> tuple[np.ndarray, tuple]:
        """Up to `block` frames and the overlap of the chunk before -> `stride` samples and the overlap with the next.

        n_B: frames of each row, None: all. scale_B: loudness, None: LEVEL.
        """
        batch, frames, _ = grid_BFQ.shape
        n_B = np.full(batch, frames) if n_B is None else np.clip(n_B, 0, frames)
        scale_B = np.full(batch, self._level) if scale_B is None else np.asarray(scale_B, np.float32)
        grid = np.pad(grid_BFQ, ((0, 0), (0, self.block - frames), (0, 0)))
        waveform_BNC = run(self._decode, grid, n_B)[:, : self.chunk] * scale_B[:, None, None]
        weight_BN1 = np.where(np.arange(self.chunk) < n_B[:, None] * self.hop, self._fade_N, 0)[..., None]
        total_BNC = waveform_BNC * weight_BN1
        if tail is not None:
            overlap = self.chunk - self.stride
            total_BNC[:, :overlap] += tail[0]
            weight_BN1[:, :overlap] += tail[1]
        after = (total_BNC[:, self.stride :], weight_BN1[:, self.stride :])
        return faded(total_BNC[:, : self.stride], weight_BN1[:, : self.stride]), after


def faded(total: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Weighted sums -> means; zero where the weight is zero."""
    return np.where(weight > 0, total / np.maximum(weight, 1e-20), 0)


def run(network: Callable, x: np.ndarray, n_B: np.ndarray) -> np.ndarray:
    """Runs a network on rows in groups of few sizes."""
    with own_mesh():
        groups = [np.asarray(network(x[rows], n_B[rows].astype(np.int32))) for rows in row_groups(len(x))]
    return np.concatenate(groups)[: len(x)]
