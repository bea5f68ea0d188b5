"""Input that every codec refuses, in one sentence each."""

import numpy as np

from audiolm_jax.errors import InputError


def leading(codebooks: int | None, available: int) -> int:
    """The number of leading codebooks to use; None: all. Raises InputError outside 1..available."""
    if codebooks is None:
        return available
    if not 1 <= codebooks <= available:
        raise InputError(f"codec.codebooks: {codebooks} asked for, but this codec has 1 to {available}")
    return int(codebooks)


def waveform(waveform_BN, channels: int = 1, multiple_of: int | None = None) -> tuple[np.ndarray, bool]:
    """(audio as float32 `[B, N, channels]`, whether the argument had no batch axis).

    Mono comes as `[B, N]` or `[N]`, stereo as `[B, 2, N]` or `[2, N]`. Refused when empty, not finite or of another
    shape.
    """
    audio = np.asarray(waveform_BN)
    axes = 1 if channels == 1 else 2
    if audio.ndim not in (axes, axes + 1) or not np.issubdtype(audio.dtype, np.floating):
        shape = "samples]" if axes == 1 else f"{channels}, samples]"
        raise InputError(
            f"audio: shape {audio.shape} of {audio.dtype}; this codec takes float samples in [-1, 1] shaped "
            f"[batch, {shape} or [{shape}"
        )
    if axes == 2 and audio.shape[-2] != channels:
        raise InputError(f"audio: {audio.shape[-2]} channels in shape {audio.shape}; this codec takes {channels}")
    if audio.size == 0:
        raise InputError(f"audio: shape {audio.shape} holds no samples; at least one is needed")
    if not np.isfinite(audio).all():
        raise InputError("audio: holds NaN or infinite samples; only finite samples can be encoded")
    if multiple_of and audio.shape[-1] % multiple_of:
        raise InputError(f"audio: a streaming step of {audio.shape[-1]} samples; a multiple of {multiple_of} is needed")
    alone = audio.ndim == axes
    audio = audio[None] if alone else audio
    return (audio[..., None] if axes == 1 else audio.swapaxes(1, 2)).astype(np.float32), alone


def lengths(lengths_B, rows: int, longest: int, unit: str) -> np.ndarray:
    """The length of every row `[B]`; None: all the longest. Raises InputError outside 1..longest."""
    if lengths_B is None:
        return np.full(rows, longest)
    lengths_B = np.asarray(lengths_B)
    if lengths_B.shape != (rows,) or not np.issubdtype(lengths_B.dtype, np.integer):
        raise InputError(f"{unit} per row: shape {lengths_B.shape} of {lengths_B.dtype}; {rows} integers are needed")
    if lengths_B.min() < 1 or lengths_B.max() > longest:
        raise InputError(f"{unit} per row: {lengths_B.min()} to {lengths_B.max()}; the rows hold 1 to {longest}")
    return lengths_B.astype(np.int64)


def supported(config, **accepted: tuple) -> None:
    """Raises InputError for the first field of a codec's configuration whose value is not among the accepted ones."""
    for name, values in accepted.items():
        if getattr(config, name) not in values:
            raise InputError(f"codec config: {name}={getattr(config, name)!r} is not supported; known are {values}")


def layers(weights, config, **more: int) -> None:
    """Raises InputError if a configuration has more layers, codebooks or ratios than its file has tensors
    (`hub.weights.Weights`). more: counts that follow from the fields."""
    fields = vars(config)
    counts = {name: value for name, value in fields.items() if name.endswith(("layers", "quantizers", "n_codebooks"))}
    counts |= {name: len(value) for name, value in fields.items() if name.endswith("ratios")}
    weights.check_layers(**counts, **more)


def codes(codes_BTQ, codebooks: int, codebook_size: int) -> tuple[np.ndarray, bool]:
    """`[B, T, q]` or `[T, q]` codes as int32 `[B, T, codebooks]`, and whether the argument had no batch axis.

    Absent codebooks are -1. Refused when empty, out of range or with q outside 1..codebooks.
    """
    grid = np.asarray(codes_BTQ)
    if grid.ndim not in (2, 3) or not np.issubdtype(grid.dtype, np.integer):
        raise InputError(
            f"codes: shape {grid.shape} of {grid.dtype}; a codec takes integer codes shaped [batch, frames, codebooks]"
        )
    if not 1 <= grid.shape[-1] <= codebooks:
        raise InputError(f"codes: {grid.shape[-1]} codebooks in the last axis; this codec takes 1 to {codebooks}")
    if grid.size == 0:
        raise InputError(f"codes: shape {grid.shape} holds no frames; at least one is needed")
    low, high = int(grid.min()), int(grid.max())
    if low < 0 or high >= codebook_size:
        wrong = low if low < 0 else high
        raise InputError(f"codes: {wrong} is out of range; codes of this codec are 0 to {codebook_size - 1}")
    alone = grid.ndim == 2
    grid = (grid[None] if alone else grid).astype(np.int32)
    return np.pad(grid, [(0, 0), (0, 0), (0, codebooks - grid.shape[-1])], constant_values=-1), alone
