"""Speed of generation: real-time factor, time to first audio and sequential passes, measured and predicted.

One utterance at a time, compiled beforehand, the codec included, medians over repeats of the same request. The
prediction is a roofline over the passes that the order needs (serialization/cost.py), with the arithmetic and memory
rates that this machine shows in two small probes: a floor without the codec or any overhead.
"""

import dataclasses
import importlib.metadata
import os
import platform
import re
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from audiolm_jax.errors import InputError
from audiolm_jax.serialization import cost, documents
from audiolm_jax.training import chips

if TYPE_CHECKING:
    from audiolm_jax.sampling.generator import Generator

PACKAGES = ("jax", "jaxlib", "flax", "numpy")


@dataclasses.dataclass(frozen=True)
class Timing:
    """Measured and predicted times of one request; seconds are medians over repeats."""

    frames: int
    audio_seconds: float
    seconds: float  # until the stream ended
    first_audio_seconds: float  # until the stream yielded its first samples
    passes: int  # sequential passes of the network, as counted by the loop
    predicted: cost.Cost
    predicted_seconds: float  # roofline of the network alone
    predicted_first_audio_seconds: float


@dataclasses.dataclass(frozen=True)
class Rates:
    """Peak rates of a machine, as measured."""

    flops_per_second: float
    bytes_per_second: float


def measure(
    generator: "Generator",
    texts: Sequence[str],
    speakers: Sequence[str] | str = "",
    repeats: int = 3,
    rates: Rates | None = None,
    **options,
) -> list[Timing]:
    """One Timing per text, each spoken alone.

    Args:
      repeats: timed runs of each text after an untimed one, which compiles. All have the same seed, so they do the
        same work.
      rates: of this machine (None: `probe()`).
      options: further arguments of `Generator.requests`, one value for all texts.

    Raises InputError for no texts or no repeats, and what `Generator.requests` raises.
    """
    if not texts or repeats < 1:
        raise InputError(f"{len(texts)} texts and {repeats} repeats to time; there must be at least 1 each")
    speakers = [speakers] * len(texts) if isinstance(speakers, str) else speakers
    dtype = generator.model.config.compute_dtype
    rates = rates or probe(dtype)
    timings = []
    for text, speaker in zip(texts, speakers, strict=True):
        [request] = generator.requests([text], speakers=[speaker], **options)
        _stream(generator, request)
        runs = [_stream(generator, request) for _ in range(repeats)]
        result = runs[0][2]
        grid, config, vocab = generator.grid, generator.model.config, generator.vocab
        row = documents.prompt_row(request.document, grid, vocab, causal=grid.causal_levels > 0)
        prompt, frames = len(row["positions"]), len(result.codes_TQ)
        predicted = cost.cost(grid, frames, prompt, config, vocab, dtype.itemsize)
        passes = cost.generation(grid, frames, prompt, config.window)
        peaks = rates.flops_per_second, rates.bytes_per_second
        seconds_P = cost.seconds_of_passes(passes, config, vocab, *peaks, dtype.itemsize)
        timings.append(
            Timing(
                frames=frames,
                audio_seconds=result.waveform.shape[-1] / result.sample_rate,
                seconds=statistics.median(total for total, _, _ in runs),
                first_audio_seconds=statistics.median(first for _, first, _ in runs),
                passes=result.passes,
                predicted=predicted,
                predicted_seconds=float(seconds_P.sum()),
                predicted_first_audio_seconds=float(seconds_P[: predicted.first_passes].sum()),
            )
        )
    return timings


def _stream(generator: "Generator", request) -> tuple[float, float, object]:
    """(seconds until the last samples, seconds until the first ones, the Result)."""
    began = time.perf_counter()
    stream, first = generator.run_stream([request]), None
    while True:
        try:
            next(stream)
            first = first or time.perf_counter() - began
        except StopIteration as finished:
            total = time.perf_counter() - began
            return total, first or total, finished.value[0]


def probe(dtype=jnp.float32, size: int | None = None, repeats: int = 5, megabytes: int | None = None) -> Rates:
    """The best of a few products of matrices of `size` (`chips.measured_flops`) and of a few sums over `megabytes` MB
    (None: 64 on a CPU, 2048 on an accelerator), on the first device."""
    megabytes = megabytes or (64 if jax.default_backend() == "cpu" else 2048)
    array = jnp.ones(megabytes * 2**20 // jnp.dtype(dtype).itemsize, dtype)
    total = jax.jit(lambda x: jnp.sum(x, dtype=jnp.float32))
    read = chips.best_seconds(total, array, repeats=repeats)
    return Rates(chips.measured_flops(dtype, size, repeats), array.nbytes / read)


def hardware() -> dict[str, str | float]:
    """The machine: processor, devices, versions and load."""
    device = jax.devices()[0]
    load = {"load_average": os.getloadavg()[0]} if hasattr(os, "getloadavg") else {}
    return {
        "processor": _processor(),
        "cores": os.cpu_count() or 0,
        "devices": f"{jax.device_count()} x {device.device_kind}",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        **load,
    }


def _processor() -> str:
    cpus = Path("/proc/cpuinfo")
    text = cpus.read_text(encoding="utf-8", errors="replace") if cpus.exists() else ""
    name = re.search(r"^model name[^:]*:(.*)$", text, re.MULTILINE)
    return name[1].strip() if name else platform.processor() or platform.machine()
