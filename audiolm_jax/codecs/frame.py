"""The default codec: 16 kHz speech as 25 frames per second of residual codes, causal, streaming both ways.

Trained from scratch on the project's synthetic corpus by `experiments/default_codec`; the network is in
`frame_model.py`. The weights are one safetensors file, half precision, with the configuration as JSON in its header.
"""

import functools
import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from audiolm_jax import files
from audiolm_jax.codecs import checks
from audiolm_jax.codecs.frame_model import FrameConfig, FrameModel, dequantize, quantize
from audiolm_jax.errors import InputError

WEIGHTS = Path(__file__).parent / "weights" / "default.safetensors"
SIZES = (32, 8, 1)  # frames per call of the network: input goes piece by piece through the streaming state, so that
BLOCK = SIZES[0]  # few shapes are ever compiled
ROWS = 64  # rows per call, or fewer by a power of two


class FrameCodec:
    """See the contract in `audiolm_jax.codecs`."""

    def __init__(self, config: FrameConfig, model: FrameModel, books_QKZ, fingerprint: str, codebooks: int | None):
        self.name = "default"
        self.sample_rate, self.hop, self.delay = config.sample_rate, config.hop, config.delay
        self.frame_rate = config.sample_rate / config.hop
        self.codebook_size = config.codebook_size
        self.codebooks = checks.kept_codebooks(codebooks, config.codebooks)
        self.block = BLOCK
        self.fingerprint = fingerprint
        self.graph, self.params = nnx.split(model)
        with own_mesh():
            self.books_QKZ = jnp.asarray(books_QKZ)[: self.codebooks]

    def frames(self, samples: int) -> int:
        """Frames that cover so many samples."""
        return -(-int(samples) // self.hop)

    def encode(self, waveform_BN) -> np.ndarray:
        """`[B, N]` (or `[N]`) samples -> codes `[B, T, Q]` (or `[T, Q]`) int32, T = ceil(N / hop)."""
        audio = checks.waveform(waveform_BN)
        if audio.ndim == 1:
            return self.encode(audio[None])[0]
        count = self.frames(audio.shape[1])
        audio = np.pad(audio, [(0, 0), (0, -(-count // BLOCK) * BLOCK * self.hop - audio.shape[1])])
        groups = []
        for rows in row_groups(audio):
            codes, _ = self.encode_step(self.encode_init(len(rows)), rows)
            groups.append(codes)
        return np.concatenate(groups)[: len(audio), :count]

    def decode(self, codes_BTQ) -> np.ndarray:
        """Codes `[B, T, q <= Q]` (or `[T, q]`) -> samples `[B, T * hop]` (or `[T * hop]`)."""
        grid = checks.codes(codes_BTQ, self.codebooks, self.codebook_size)
        if grid.ndim == 2:
            return self.decode(grid[None])[0]
        count = grid.shape[1]
        padded = np.pad(grid, [(0, 0), (0, -count % BLOCK), (0, 0)])
        groups = []
        for rows in row_groups(padded):
            waveform, _ = self.decode_step(self.decode_init(len(rows)), rows)
            groups.append(waveform)
        return np.concatenate(groups)[: len(grid), : count * self.hop]

    def encode_init(self, batch: int) -> dict:
        """The streaming state before the first sample."""
        with own_mesh():
            return nnx.merge(self.graph, self.params).encoder.initial_state(batch)

    def encode_step(self, state: dict, waveform_BN) -> tuple[np.ndarray, dict]:
        """The next `[B, N]` samples (N a multiple of hop) -> (their codes `[B, T, Q]`, state)."""
        audio, chunks = checks.waveform(waveform_BN, multiple_of=self.hop), []
        for start, stop in pieces(audio.shape[1] // self.hop):
            piece = audio[:, start * self.hop : stop * self.hop]
            with own_mesh():
                codes, state = _encode(self.graph, self.params, self.books_QKZ, piece, state)
            chunks.append(np.asarray(codes))
        return np.concatenate(chunks, axis=1), state

    def decode_init(self, batch: int) -> dict:
        """The streaming state before the first frame."""
        with own_mesh():
            return nnx.merge(self.graph, self.params).decoder.initial_state(batch)

    def decode_step(self, state: dict, codes_BTQ) -> tuple[np.ndarray, dict]:
        """The next frames `[B, T, q <= Q]` -> (their samples `[B, T * hop]`, state)."""
        grid, chunks = checks.codes(codes_BTQ, self.codebooks, self.codebook_size), []
        absent = self.codebooks - grid.shape[-1]
        grid = np.pad(grid, [(0, 0), (0, 0), (0, absent)], constant_values=-1)
        for start, stop in pieces(grid.shape[1]):
            with own_mesh():
                waveform, state = _decode(self.graph, self.params, self.books_QKZ, grid[:, start:stop], state)
            chunks.append(np.asarray(waveform))
        return np.concatenate(chunks, axis=1), state


def own_mesh():
    """The first local device by itself. A codec works on one device, whatever mesh its caller has entered."""
    device = jax.local_devices()[:1]
    return jax.set_mesh(jax.make_mesh((1,), ("codec",), (jax.sharding.AxisType.Auto,), devices=device))


@functools.partial(jax.jit, static_argnums=0)
def _encode(graph, params, books_QKZ, waveform_BN, state):
    latents, state = nnx.merge(graph, params).encoder(waveform_BN, state)
    return quantize(latents, books_QKZ)[0], state


@functools.partial(jax.jit, static_argnums=0)
def _decode(graph, params, books_QKZ, codes_BTQ, state):
    waveform, state = nnx.merge(graph, params).decoder(dequantize(codes_BTQ, books_QKZ), state)
    return jnp.clip(waveform, -1, 1), state


def pieces(frames: int) -> list[tuple[int, int]]:
    """Cuts so many frames into (start, stop) of the compiled sizes, the largest first."""
    cuts, start = [], 0
    for size in SIZES:
        while frames - start >= size:
            cuts.append((start, start + size))
            start += size
    return cuts


def row_groups(array: np.ndarray) -> list[np.ndarray]:
    """Groups of at most ROWS rows, the last one padded by repeating a row to a power of two."""
    groups = [array[start : start + ROWS] for start in range(0, len(array), ROWS)]
    size = 1 << (len(groups[-1]) - 1).bit_length()
    groups[-1] = np.pad(groups[-1], [(0, size - len(groups[-1]))] + [(0, 0)] * (array.ndim - 1), mode="edge")
    return groups


def names(params: nnx.State) -> dict[str, tuple]:
    """The dotted name of every parameter and its path."""
    return {".".join(str(part) for part in path): path for path, _ in nnx.to_flat_state(params)}


def save(path: str | Path, config: FrameConfig, params: nnx.State, books_QKZ) -> None:
    """Writes weights in half precision with the configuration in the header."""
    from safetensors.numpy import save_file

    flat = {".".join(str(part) for part in key): value[...] for key, value in nnx.to_flat_state(params)}
    arrays = {name: np.ascontiguousarray(np.asarray(value, np.float16)) for name, value in flat.items()}
    arrays["books_QKZ"] = np.ascontiguousarray(np.asarray(books_QKZ, np.float16))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"codec": "default", "config": json.dumps(asdict(config), sort_keys=True)}
    with files.replacing(path) as temporary:
        save_file(arrays, temporary, metadata=about)


@functools.lru_cache(maxsize=8)
def _read(path: Path, modified: int) -> tuple:
    """(config, model, codebooks, fingerprint) of a weights file; `modified` only tells versions of it apart."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            text = (file.metadata() or {}).get("config", "")
            arrays = {name: file.get_tensor(name) for name in sorted(file.keys())}
    except (SafetensorError, OSError) as error:
        raise InputError(f"codec.path: {path} cannot be read as safetensors ({error}); it may be truncated") from error
    try:
        config = FrameConfig(**json.loads(text))
    except (ValueError, TypeError) as error:
        raise InputError(f"codec.path: {path} holds no weights of the codec 'default' (no configuration)") from error
    digest = hashlib.sha256(json.dumps(asdict(config), sort_keys=True).encode())
    for name, array in arrays.items():
        digest.update(name.encode() + np.ascontiguousarray(array).tobytes())

    with own_mesh():
        model, books_QKZ = _fill(path, config, arrays)
    return config, model, books_QKZ, digest.hexdigest()


def _fill(path: Path, config: FrameConfig, arrays: dict[str, np.ndarray]) -> tuple[FrameModel, jax.Array]:
    """The model and codebooks of a configuration with these arrays in them."""
    graph, params = nnx.split(nnx.eval_shape(lambda: FrameModel(config, nnx.Rngs(0))))
    flat = dict(nnx.to_flat_state(params))
    shapes = {name: flat[key].shape for name, key in names(params).items()}
    shapes["books_QKZ"] = (config.codebooks, config.codebook_size, config.latent)
    wrong = [name for name in sorted(shapes | arrays) if name not in arrays or arrays[name].shape != shapes.get(name)]
    if wrong:
        raise InputError(
            f"codec.path: {path} does not fit its configuration: {wrong[0]} is missing, unknown or misshapen"
        )
    for name, key in names(params).items():
        flat[key] = flat[key].replace(jnp.asarray(arrays[name], jnp.float32))
    return nnx.merge(graph, nnx.from_flat_state(flat)), jnp.asarray(arrays["books_QKZ"], jnp.float32)


def load(path: str | Path | None = None, codebooks: int | None = None) -> FrameCodec:
    """The codec with weights from `path`, or with those of the package. Raises InputError if they cannot be used."""
    path = Path(path) if path else WEIGHTS
    if not path.is_file():
        raise InputError(f"codec.path: {path} does not exist; a safetensors file of the codec 'default' is needed")
    config, model, books_QKZ, fingerprint = _read(path, path.stat().st_mtime_ns)
    return FrameCodec(config, model, books_QKZ, fingerprint, codebooks)
