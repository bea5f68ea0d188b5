"""A codec that works on overlapping seconds, each normalised by its own loudness (EnCodec 48 kHz).

A signal is zero-padded to complete chunks (as by the published feature extractor; the reference encodes one more chunk,
of silence, on which nothing before the end depends). Every chunk has the same number of frames, and decoded chunks are
cross-faded. The loudness of a chunk is not a code: `encode_scaled` returns it with the codes and `decode` takes it;
without it every chunk gets the loudness LEVEL.
"""

import numpy as np

from audiolm_jax.codecs import checks
from audiolm_jax.codecs.streaming import About, Stage, as_output, joined, own_mesh, row_groups
from audiolm_jax.errors import InputError

TOGETHER = 8  # rows of chunks in one call
LEVEL = 0.1  # default root mean square of a chunk: -20 dB of full scale


class ChunkedCodec:
    """The contract in `audiolm_jax.codecs`, but a signal has the frames of all chunks that begin before its end."""

    def __init__(self, about: About, encoder: Stage, decoder: Stage, chunk: int, stride: int, normalize, config):
        """encoder: waveform [B, chunk, channels] -> codes [B, block, Q]; decoder: the inverse."""
        vars(self).update(vars(about))
        self.chunk, self.stride, self.normalize, self.config = chunk, stride, normalize, config
        self.block = -(-chunk // self.hop)  # frames per chunk
        self.frame_rate = self.block * self.sample_rate / stride
        self._encoder, self._decoder = encoder, decoder
        # A triangular cross-fade, as in the reference.
        self._fade_N = 0.5 - np.abs(np.linspace(0, 1, chunk + 2, dtype=np.float32)[1:-1] - 0.5)

    def frames(self, samples: int) -> int:
        return -(-int(samples) // self.stride) * self.block

    def samples(self, frames: int) -> int:
        if not frames:
            return 0
        before = (frames - 1) // self.block
        return before * self.stride + min(self.chunk, (frames - before * self.block) * self.hop)

    def encode(self, waveform_BN, samples_B=None) -> np.ndarray:
        return self.encode_scaled(waveform_BN, samples_B)[0]

    def encode_scaled(self, waveform_BN, samples_B=None) -> tuple[np.ndarray, np.ndarray]:
        """Codes as of `encode`, and the loudness of every chunk `[B, chunks]` (or `[chunks]`)."""
        audio_BNC, alone = checks.waveform(waveform_BN, self.channels)
        ends_B = checks.lengths(samples_B, *audio_BNC.shape[:2], "samples")
        exists_BN = np.arange(audio_BNC.shape[1]) < ends_B[:, None]
        audio_BNC = np.where(exists_BN[..., None], audio_BNC, 0)
        codes_BTQ, scales_BC = self._encode_chunks(audio_BNC, -(-audio_BNC.shape[1] // self.stride))
        exists_BT = np.arange(codes_BTQ.shape[1]) < (-(-ends_B // self.stride) * self.block)[:, None]
        codes_BTQ = np.where(exists_BT[..., None], codes_BTQ, 0)
        return (codes_BTQ[0], scales_BC[0]) if alone else (codes_BTQ, scales_BC)

    def decode(self, codes_BTQ, frames_B=None, scales_BC=None) -> np.ndarray:
        """scales_BC: the loudness of every chunk as `encode_scaled` returns it; None: LEVEL for all."""
        grid, alone = checks.codes(codes_BTQ, self.codebooks, self.codebook_size)
        ends_B = checks.lengths(frames_B, *grid.shape[:2], "frames")
        shape = (len(grid), -(-grid.shape[1] // self.block))
        scales_BC = None if scales_BC is None else np.atleast_2d(scales_BC)
        if scales_BC is not None and scales_BC.shape != shape:
            raise InputError(f"scales: shape {scales_BC.shape}; one per chunk, {shape}, is needed")
        waveform = as_output(self._push(self.decode_init(len(grid), scales_BC), grid, ends_B, last=True)[0])
        return waveform[0] if alone else waveform

    def encode_init(self, batch: int) -> dict:
        """`scales` in the state is a list of the loudness `[B, n]` of the next n chunks."""
        return {"waiting": None, "scales": []}

    def encode_step(self, state: dict, waveform_BN) -> tuple[np.ndarray, dict]:
        audio_BNC, _ = checks.waveform(waveform_BN, self.channels, multiple_of=self.hop)
        waiting = joined(state["waiting"], audio_BNC)
        count = max(0, (waiting.shape[1] - self.chunk) // self.stride + 1)  # complete chunks
        codes, scales_BC = self._encode_chunks(waiting, count)
        return codes, {"waiting": waiting[:, count * self.stride :], "scales": [*state["scales"], scales_BC]}

    def encode_end(self, state: dict, waveform_BN=None) -> np.ndarray | None:
        more = None if waveform_BN is None else checks.waveform(waveform_BN, self.channels)[0]
        waiting = joined(state["waiting"], more)
        if waiting is None or not waiting.shape[1]:
            return None
        codes, scales_BC = self._encode_chunks(waiting, -(-waiting.shape[1] // self.stride))
        state["scales"].append(scales_BC)
        return codes

    def decode_init(self, batch: int, scales_BC=None) -> dict:
        """scales_BC: the loudness of all chunks, None: LEVEL."""
        return {"waiting": None, "tail": None, "scales": None if scales_BC is None else np.asarray(scales_BC)}

    def decode_step(self, state: dict, codes_BTQ) -> tuple[np.ndarray, dict]:
        grid, _ = checks.codes(codes_BTQ, self.codebooks, self.codebook_size)
        waveform_BNC, state = self._push(state, grid, None, last=False)
        return as_output(waveform_BNC), state

    def decode_end(self, state: dict, codes_BTQ=None) -> np.ndarray | None:
        grid = None if codes_BTQ is None else checks.codes(codes_BTQ, self.codebooks, self.codebook_size)[0]
        if state["waiting"] is None and grid is None:
            return None
        return as_output(self._push(state, grid, None, last=True)[0])

    def _encode_chunks(self, audio_BNC: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The first `count` chunks of a signal, completed with zeros -> codes [B, T, Q] and loudness [B, count]."""
        batch, length, _ = audio_BNC.shape
        missing = max(0, (count - 1) * self.stride + self.chunk - length)
        audio_BNC = np.pad(audio_BNC, ((0, 0), (0, missing), (0, 0)))
        codes, scales = [np.zeros((batch, 0, self.codebooks), np.int32)], [np.zeros((batch, 0), np.float32)]
        together = max(1, TOGETHER // batch)  # chunks are independent: several in one call
        for first in range(0, count, together):
            starts = [n * self.stride for n in range(first, min(count, first + together))]
            rows_BNC = np.concatenate([audio_BNC[:, start : start + self.chunk] for start in starts])
            loudness_B1 = np.sqrt((rows_BNC.mean(axis=2) ** 2).mean(axis=1, keepdims=True)) + np.float32(1e-8)
            scale_B1 = loudness_B1 if self.normalize else np.ones_like(loudness_B1)
            codes_BTQ = run(self._encoder, rows_BNC / scale_B1[..., None], np.full(len(rows_BNC), self.chunk))
            codes += np.split(codes_BTQ, len(starts))
            scales += np.split(scale_B1, len(starts))
        return np.concatenate(codes, axis=1), np.concatenate(scales, axis=1)

    def _push(self, state: dict, grid, ends_B: np.ndarray | None, last: bool) -> tuple[np.ndarray, dict]:
        """The next frames -> (the samples that no later chunk changes, or all if these are the last frames, state).

        ends_B: the number of frames of every row; None: all that there are.
        """
        waiting, tail, scales_BC = joined(state["waiting"], grid), state["tail"], state["scales"]
        batch, frames, _ = waiting.shape
        pieces = [np.zeros((batch, 0, self.channels), np.float32)]
        starts = range(0, frames if last else frames - self.block + 1, self.block)
        for n, start in enumerate(starts):
            grid_BFQ = waiting[:, start : start + self.block]
            count = grid_BFQ.shape[1]
            n_B = np.full(batch, count) if ends_B is None else np.clip(ends_B - start, 0, count)
            scale_B = np.full(batch, LEVEL if self.normalize else 1) if scales_BC is None else scales_BC[:, n]
            piece, tail = self._decode_chunk(grid_BFQ, n_B, np.asarray(scale_B, np.float32), tail)
            pieces.append(piece)
        if last:
            pieces.append(faded(*tail))
        length = (self.samples(frames) if frames else self.chunk - self.stride) if last else None
        after = {
            "waiting": waiting[:, len(starts) * self.block :],
            "tail": tail,
            "scales": None if scales_BC is None else scales_BC[:, len(starts) :],
        }
        return np.concatenate(pieces, axis=1)[:, :length], after

    def _decode_chunk(self, grid_BFQ: np.ndarray, n_B: np.ndarray, scale_B: np.ndarray, tail) -> tuple:
        """Up to `block` frames, n_B of each row -> (`stride` samples, the overlap with the next chunk).

        scale_B: loudness. tail: the overlap that the chunk before returned; None: this is the first chunk.
        """
        grid = np.pad(grid_BFQ, ((0, 0), (0, self.block - grid_BFQ.shape[1]), (0, 0)))
        waveform_BNC = run(self._decoder, grid, n_B)[:, : self.chunk] * scale_B[:, None, None]
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


def run(stage: Stage, x: np.ndarray, n_B: np.ndarray) -> np.ndarray:
    """A network on rows in groups of few sizes."""
    n_B = n_B.astype(np.int32)
    with own_mesh():
        groups = [np.asarray(stage.program(x[rows], n_B[rows], None, True)[0]) for rows in row_groups(len(x))]
    return np.concatenate(groups)[: len(x)]
