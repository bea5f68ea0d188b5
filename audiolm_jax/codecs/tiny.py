"""A codec of milliseconds: 25 Hz, 4 codebooks of 16 codes, built from a seed. For tests and smoke configs.

Each frame of 640 samples is projected on 24 low cosines (an orthonormal DCT-II, up to 300 Hz of one frame's
24 slowest half-waves), its companded coefficients are quantised by a residual VQ over seeded codebooks, and
decoding is the transpose. It keeps loudness and the slow shape of a waveform, not speech: use "default" to listen.
Frames do not depend on each other, so it is causal, streams without a state and has no delay.
"""

import numpy as np

from audiolm_jax import files
from audiolm_jax.codecs import checks
from audiolm_jax.errors import InputError

CONFIG = {
    "name": "tiny",
    "sample_rate": 16000,
    "hop": 640,
    "codebooks": 4,
    "codebook_size": 16,
    "cosines": 24,
    "seed": 0,
}
COMPAND = 0.5  # exponent: evens out loud and soft frames before quantising


def build_codebooks(seed: int, codebooks: int, codebook_size: int, cosines: int) -> np.ndarray:
    """Seeded codebooks `[Q, K, cosines]`; code 0 is the zero vector, so no level can make a frame worse."""
    rng = np.random.default_rng(seed)
    books_QKC = rng.standard_normal((codebooks, codebook_size, cosines)).astype(np.float32)
    tilt_C = np.exp(-np.arange(cosines) / 12.0)
    scale_Q = 0.8 * 0.75 ** np.arange(codebooks)
    books_QKC = (books_QKC * tilt_C * scale_Q[:, None, None]).astype(np.float32)
    books_QKC[:, 0] = 0
    return books_QKC


class TinyCodec:
    """See the contract in `audiolm_jax.codecs`. All arrays are numpy; float64 inside, so results do not depend on B."""

    def __init__(self, config: dict, codebooks: int | None):
        self.name = "tiny"
        self.sample_rate = config["sample_rate"]
        self.hop = config["hop"]
        self.frame_rate = self.sample_rate / self.hop
        self.codebook_size = config["codebook_size"]
        self.delay, self.channels, self.block = 0, 1, 1
        self.codebooks = checks.leading(codebooks, config["codebooks"])
        self.books_QKC = build_codebooks(config["seed"], config["codebooks"], self.codebook_size, config["cosines"])
        n, c = np.arange(self.hop)[:, None], np.arange(config["cosines"])[None]
        basis_NC = np.sqrt(2 / self.hop) * np.cos(np.pi * (n + 0.5) * c / self.hop)
        basis_NC[:, 0] /= np.sqrt(2)
        self.basis_NC = basis_NC
        self.fingerprint = files.digest(config, {"": self.books_QKC})

    def frames(self, samples: int) -> int:
        return -(-int(samples) // self.hop)

    def samples(self, frames: int) -> int:
        return frames * self.hop

    def encode(self, waveform_BN, samples_B=None) -> np.ndarray:
        audio_BNC, alone = checks.waveform(waveform_BN)
        batch, count, _ = audio_BNC.shape
        ends_B = checks.lengths(samples_B, batch, count, "samples")[:, None]
        audio_BN = np.where(np.arange(count) < ends_B, audio_BNC[..., 0], 0)
        audio_BN = np.pad(audio_BN, ((0, 0), (0, self.frames(count) * self.hop - count)))
        frames = audio_BN.reshape(batch, -1, self.hop).astype(np.float64)
        # einsum without optimisation sums in a fixed order, whatever the number of rows
        coefficients = np.einsum("...n,nc->...c", frames, self.basis_NC)
        residual = np.sign(coefficients) * np.abs(coefficients) ** COMPAND
        chosen = []
        for book_KC in self.books_QKC[: self.codebooks].astype(np.float64):
            distance = (book_KC**2).sum(-1) - 2 * np.einsum("...c,kc->...k", residual, book_KC)
            code = distance.argmin(-1)
            residual = residual - book_KC[code]
            chosen.append(code)
        codes_BTQ = np.stack(chosen, axis=-1).astype(np.int32)
        codes_BTQ = np.where((np.arange(codes_BTQ.shape[1]) < -(-ends_B // self.hop))[..., None], codes_BTQ, 0)
        return codes_BTQ[0] if alone else codes_BTQ

    def decode(self, codes_BTQ, frames_B=None) -> np.ndarray:
        grid, alone = checks.codes(codes_BTQ, self.codebooks, self.codebook_size)
        ends_B = checks.lengths(frames_B, *grid.shape[:2], "frames")
        present = (grid[0, 0] >= 0).sum()
        companded = sum(self.books_QKC[q][grid[..., q]].astype(np.float64) for q in range(present))
        coefficients = np.sign(companded) * np.abs(companded) ** (1 / COMPAND)
        frames = np.einsum("...c,nc->...n", coefficients, self.basis_NC)
        frames = np.where((np.arange(grid.shape[1]) < ends_B[:, None])[..., None], frames, 0)
        waveform_BN = np.clip(frames.reshape(len(grid), -1), -1, 1).astype(np.float32)
        return waveform_BN[0] if alone else waveform_BN

    def encode_init(self, batch: int) -> tuple:
        return ()

    def encode_step(self, state: tuple, waveform_BN) -> tuple[np.ndarray, tuple]:
        checks.waveform(waveform_BN, multiple_of=self.hop)
        return self.encode(waveform_BN), state

    def encode_end(self, state: tuple, waveform_BN=None) -> np.ndarray | None:
        return None if waveform_BN is None else self.encode(waveform_BN)

    def decode_init(self, batch: int) -> tuple:
        return ()

    def decode_step(self, state: tuple, codes_BTQ) -> tuple[np.ndarray, tuple]:
        return self.decode(codes_BTQ), state

    def decode_end(self, state: tuple, codes_BTQ=None) -> np.ndarray | None:
        return None if codes_BTQ is None else self.decode(codes_BTQ)


def load(path: str | None = None, codebooks: int | None = None) -> TinyCodec:
    """The seeded codec; it has no weights file, so a `path` is refused."""
    if path is not None:
        raise InputError(f"codec.path: {path} was given, but the codec 'tiny' is built from a seed and reads no file")
    return TinyCodec(CONFIG, codebooks)
