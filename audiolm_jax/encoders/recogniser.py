"""The recogniser that measures intelligibility: a small CTC model of characters with frozen weights.

`experiments/recogniser/` trained it on the synthetic corpus alone, so its error on other speech includes its own
mistakes: report its error on recorded and on codec-resynthesised speech beside every number. Connectionist temporal
classification: Graves et al. 2006. Blocks: ConvNeXt (Liu et al. 2022) over time.

Axes: B batch, F log-mel frames (10 ms), T network frames (`stack` log-mel frames), M mel bands, D width, C characters
(0 is the CTC blank).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from audiolm_jax import audio, files
from audiolm_jax.config import keys_of
from audiolm_jax.errors import InputError
from audiolm_jax.hub.weights import Weights
from audiolm_jax.model import versions

WEIGHTS = Path(__file__).parent / "weights" / "recogniser.safetensors"
LEVEL = 0.1  # root mean square to which every waveform is scaled
SHORTEST_SECONDS = 0.05  # shorter waveforms have the transcript ""
_POWER_FLOOR = 1e-6
_MEL_CENTRE, _MEL_SCALE = -9.0, 4.0  # brings log-mel energies of speech near mean 0, deviation 1


@dataclass(frozen=True)
class RecogniserConfig:
    """Architecture; a recogniser is this plus its weights."""

    alphabet: str = " 'abcdefghijklmnopqrstuvwxyz"
    sample_rate: int = 16_000
    window: int = 400  # samples
    hop: int = 160  # samples between log-mel frames
    bands: int = 64
    stack: int = 3  # log-mel frames per network frame
    emit: int = 2  # characters or blanks per network frame: fast voices speak more than one in 30 ms
    width: int = 144
    layers: int = 7
    kernel: int = 9  # network frames
    expansion: int = 3


def mel_matrix(config: RecogniserConfig) -> np.ndarray:
    """Mel filters from 50 Hz on, float32 [window // 2 + 1, M], each summing to one."""
    bins = np.arange(config.window // 2 + 1) * config.sample_rate / config.window
    filters = audio.mel_filters(bins, config.bands, 50, config.sample_rate / 2, narrow="nearest")
    return (filters / filters.sum(0)).astype(np.float32)


def log_mel(waveform_BN: jax.Array, config: RecogniserConfig) -> jax.Array:
    """Waveforms float32 [B, samples] to standardised log-mel energies [B, ceil(samples / hop), M]."""
    samples = waveform_BN.shape[1]
    frames = -(-samples // config.hop)
    left = (config.window - config.hop) // 2
    right = (frames - 1) * config.hop + config.window - left - samples
    padded_BN = jnp.pad(waveform_BN, ((0, 0), (left, max(right, 0))))
    index_FW = np.arange(frames)[:, None] * config.hop + np.arange(config.window)
    hann_W = audio.hann(config.window).astype(np.float32)
    mel_BFM = audio.log_mel(padded_BN[:, index_FW] * hann_W, mel_matrix(config), _POWER_FLOOR, np.sum(hann_W**2))
    return (mel_BFM - _MEL_CENTRE) / _MEL_SCALE


class Block(nnx.Module):
    """Depthwise convolution over time, then a two-layer perceptron, with one residual connection."""

    def __init__(self, config: RecogniserConfig, *, rngs: nnx.Rngs):
        width, inner = config.width, config.width * config.expansion
        normal = jax.random.normal
        self.depthwise = nnx.Param(normal(rngs.params(), (config.kernel, width)) / np.sqrt(config.kernel))
        self.scale = nnx.Param(jnp.ones((width,)))
        self.bias = nnx.Param(jnp.zeros((inner,)))
        self.up = nnx.Param(normal(rngs.params(), (width, inner)) / np.sqrt(width))
        self.down = nnx.Param(normal(rngs.params(), (inner, width)) * 0.3 / np.sqrt(inner))

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        kernel = self.depthwise.shape[0]
        half = kernel // 2
        padded_BTD = jnp.pad(x_BTD, ((0, 0), (half, kernel - 1 - half), (0, 0)))
        # a sum of shifted products: XLA's grouped convolution is slower on a CPU
        weights = self.depthwise[...]
        h_BTD = sum(padded_BTD[:, k : k + x_BTD.shape[1]] * weights[k] for k in range(kernel))
        h_BTD *= jax.lax.rsqrt(jnp.mean(jnp.square(h_BTD), -1, keepdims=True) + 1e-6) * self.scale[...]
        return x_BTD + jax.nn.silu(h_BTD @ self.up[...] + self.bias[...]) @ self.down[...]


class Network(nnx.Module):
    """Log-mel energies [B, F, M] and valid frames [B] -> log-probabilities of characters [B, T * emit, C]."""

    def __init__(self, config: RecogniserConfig, *, rngs: nnx.Rngs):
        fan_in = config.bands * config.stack
        normal = jax.random.normal
        self.stack = config.stack
        self.embed = nnx.Param(normal(rngs.params(), (fan_in, config.width)) / np.sqrt(fan_in))
        self.blocks = versions.List([Block(config, rngs=rngs) for _ in range(config.layers)])
        self.scale = nnx.Param(jnp.ones((config.width,)))
        self.emit, self.classes = config.emit, len(config.alphabet) + 1
        shape = (config.width, config.emit * self.classes)
        self.head = nnx.Param(normal(rngs.params(), shape) / np.sqrt(config.width))

    def __call__(self, mel_BFM: jax.Array, frames_B: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(log-probabilities [B, T * emit, C], number of valid ones [B])."""
        batch, frames, bands = mel_BFM.shape
        inside_BF = jnp.arange(frames) < frames_B[:, None]
        mel_BFM = jnp.where(inside_BF[..., None], mel_BFM, 0)
        mel_BFM = jnp.pad(mel_BFM, ((0, 0), (0, -frames % self.stack), (0, 0)))
        x_BTD = mel_BFM.reshape(batch, -1, self.stack * bands) @ self.embed[...]
        lengths_B = -(-frames_B // self.stack)
        # Right padding stays zero in every layer, so a row's output does not depend on its batch.
        inside_BT1 = (jnp.arange(x_BTD.shape[1]) < lengths_B[:, None])[..., None]
        for block in self.blocks:
            x_BTD = jnp.where(inside_BT1, block(x_BTD), 0)
        x_BTD *= jax.lax.rsqrt(jnp.mean(jnp.square(x_BTD), -1, keepdims=True) + 1e-6) * self.scale[...]
        logits_BTC = (x_BTD @ self.head[...]).reshape(batch, -1, self.classes)
        return jax.nn.log_softmax(logits_BTC), lengths_B * self.emit


def prepare(waveform: np.ndarray, sample_rate: int, config: RecogniserConfig) -> np.ndarray | None:
    """A waveform [samples] at the recogniser's rate and level; None if it is silent, too short or not finite.

    Raises InputError unless it is one-dimensional and its sample rate positive.
    """
    waveform = np.asarray(waveform, np.float32)
    if waveform.ndim != 1:
        raise InputError(f"a waveform to transcribe must have shape [samples], got {waveform.shape}")
    if sample_rate <= 0:
        raise InputError(f"a sample rate must be positive, got {sample_rate}")
    if len(waveform) < SHORTEST_SECONDS * sample_rate or not np.all(np.isfinite(waveform)):
        return None
    waveform = audio.resample(waveform, sample_rate, config.sample_rate)
    level = float(np.sqrt(np.mean(np.square(waveform, dtype=np.float64))))
    if level < 1e-5:
        return None
    return (waveform * (LEVEL / level)).astype(np.float32)


def greedy(characters_T: np.ndarray, alphabet: str) -> str:
    """The best path of CTC: repeats merged, blanks (0) removed, spaces never doubled or at an end."""
    characters_T = np.asarray(characters_T)
    if not len(characters_T):
        return ""
    path = characters_T[np.append(True, characters_T[1:] != characters_T[:-1]) & (characters_T != 0)]
    return " ".join("".join(alphabet[c - 1] for c in path).split())


class Recogniser:
    """Frozen weights behind one method. `fingerprint`: sha256 of architecture and weights."""

    def __init__(self, config: RecogniserConfig, weights: dict[str, np.ndarray]):
        """Raises InputError for weights that do not fit the configuration."""
        self.config = config
        self.fingerprint = files.digest(asdict(config), weights)
        tensors = Weights("the file", weights, "recogniser")
        network = tensors.fill(nnx.eval_shape(lambda: Network(config, rngs=nnx.Rngs(0))))
        tensors.finish()
        graph, self.state = nnx.split(network)

        def best_path(state, waveform_BN, samples_B):
            mel_BFM = log_mel(waveform_BN, config)
            logp_BTC, lengths_B = nnx.merge(graph, state)(mel_BFM, -(-samples_B // config.hop))
            return jnp.argmax(logp_BTC, -1), lengths_B

        self._best_path = jax.jit(best_path)

    def transcribe(self, waveforms: Sequence[np.ndarray], sample_rate: int, rows: int = 8) -> list[str]:
        """Transcripts of waveforms [samples] in [-1, 1], in the order of `waveforms`; "" where `prepare` gives None.

        Waveforms are batched by `rows` and padded to 2, 4, 8, ... seconds, so that few shapes are compiled. Raises
        InputError as `prepare` does.
        """
        prepared = [prepare(waveform, sample_rate, self.config) for waveform in waveforms]
        buckets: dict[int, list[int]] = {}
        for index, waveform in enumerate(prepared):
            if waveform is not None:
                seconds = len(waveform) / self.config.sample_rate
                bucket = 2 ** max(1, int(np.ceil(np.log2(seconds)))) * self.config.sample_rate
                buckets.setdefault(bucket, []).append(index)
        transcripts = [""] * len(prepared)
        for bucket, indices in sorted(buckets.items()):
            for start in range(0, len(indices), rows):
                batch = indices[start : start + rows]
                waveform_BN, samples_B = np.zeros((rows, bucket), np.float32), np.zeros(rows, np.int32)
                for row, index in enumerate(batch):
                    samples_B[row] = len(prepared[index])
                    waveform_BN[row, : samples_B[row]] = prepared[index]
                best_BT, lengths_B = map(np.asarray, self._best_path(self.state, waveform_BN, samples_B))
                for row, index in enumerate(batch):
                    transcripts[index] = greedy(best_BT[row, : lengths_B[row]], self.config.alphabet)
        return transcripts


def load(path: str | Path = WEIGHTS) -> Recogniser:
    """The recogniser of a safetensors file with a .json beside it: the one that ships with the package, or another.

    Raises InputError for files that are missing, unreadable, or do not belong together.
    """
    path = Path(path)
    weights, _ = files.read_safetensors(path, "cannot load the recogniser")
    with files.reading(path.with_suffix(".json"), "the card of a recogniser", "cannot load the recogniser"):
        card, known = files.read_json(path.with_suffix(".json")), keys_of(RecogniserConfig, "")
        config = RecogniserConfig(**{name: known[name].check(value) for name, value in card["config"].items()})
        sizes, most = vars(config), max(2**20, *(array.size for array in weights.values()))
        if sizes["layers"] > len(weights) or any(n < 1 or n > most for n in sizes.values() if isinstance(n, int)):
            raise ValueError("it has sizes for which there are no weights")
        recogniser = Recogniser(config, weights)
    if recogniser.fingerprint != card.get("fingerprint"):
        raise InputError(f"the recogniser {path} is damaged: its fingerprint is not the one in its .json")
    return recogniser
