"""Time of the published codecs here and in `transformers` (torch), on random weights of the published sizes.

    python -m experiments.codec_speed.bench                                      every codec, a table
    python -m experiments.codec_speed.bench --codecs mimi --seconds 1 --rows 1    some of it

Both run in this process with as many threads as it may use cores (`taskset -c 1` makes it one), taking turns. The
numbers are medians, after calls on at most ten seconds that compile everything; a call that takes longer than the
budget is made once. The last column is the most memory that the process has held until then, nearly all of it the
reference's, which keeps whole signals; `--alone` leaves the reference out where memory is too small for that. Needs the
reference: pip install 'audiolm-jax[parity]'.
"""

import argparse
import os
import platform
import resource
import statistics
import sys
import tempfile
import warnings
from pathlib import Path

import jax
import numpy as np

from audiolm_jax import codecs, files
from audiolm_jax.errors import InputError, exit_code
from experiments import timing

WIDE = {"num_filters": 64, "sampling_rate": 32000, "upsampling_ratios": [8, 5, 4, 4], "use_causal_conv": False}
SECONDS_48 = {"audio_channels": 2, "norm_type": "time_group_norm", "normalize": True, "chunk_length_s": 1.0}
# name: (codec, what differs from the defaults of transformers)
MODELS = {
    "encodec_24khz": ("encodec", {}),
    "encodec_32khz": (
        "encodec",
        {**WIDE, "codebook_size": 2048, "target_bandwidths": [2.2], "use_conv_shortcut": False},
    ),
    "encodec_48khz": (
        "encodec",
        {
            **SECONDS_48,
            "overlap": 0.01,
            "sampling_rate": 48000,
            "use_causal_conv": False,
            "target_bandwidths": [3.0, 6.0, 12.0, 24.0],
        },
    ),
    "dac_16khz": ("dac", {"downsampling_ratios": [2, 4, 5, 8], "n_codebooks": 12}),
    "dac_44khz": ("dac", {"sampling_rate": 44100}),
    "mimi": ("mimi", {}),
}
WARM = 10.0  # seconds of audio that make every program compile: all pieces of a longer signal are as long as some here
CLASSES = {"encodec": "Encodec", "dac": "Dac", "mimi": "Mimi"}


def opened(name: str):
    """(the codec here, the model of the reference), with the same weights."""
    import torch
    import transformers

    kind, changes = MODELS[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{CLASSES[kind]}Config")(**changes)
    model = getattr(transformers, f"{CLASSES[kind]}Model")(config).eval()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder)
        return codecs.load(kind, folder), model


def calls(codec, model, audio: np.ndarray) -> dict[str, tuple]:
    """{"encode": (here, reference), "decode": ...}: functions of no argument."""
    import torch

    kind = model.config.model_type
    x = torch.tensor(audio if codec.channels == 2 else audio[:, None])
    codes = codec.encode(audio)
    grid = torch.tensor(codes).transpose(1, 2)
    if kind == "encodec" and model.config.chunk_length is not None:  # full chunks, as its feature extractor makes
        chunks = -(-x.shape[-1] // model.config.chunk_stride)
        length = (chunks - 1) * model.config.chunk_stride + model.config.chunk_length
        x = torch.nn.functional.pad(x, (0, length - x.shape[-1]))

    def encode():
        if kind == "encodec":
            return model.encode(x, bandwidth=model.config.target_bandwidths[-1])
        return model.encode(x)

    def decode():
        if kind == "dac":
            return model.decode(audio_codes=grid)
        if kind == "mimi":
            return model.decode(grid)
        if model.config.chunk_length is None:
            return model.decode(grid[None], [None])
        chunks = torch.stack(grid.split(codec.block, dim=-1))
        return model.decode(chunks, torch.ones(len(chunks), len(grid), 1))

    def without_gradient(function):
        def run():
            with torch.inference_mode():
                function()

        return run

    return {
        "encode": (lambda: codec.encode(audio), without_gradient(encode)),
        "decode": (lambda: codec.decode(codes), without_gradient(decode)),
    }


def measured(codec, model, batch: int, seconds: float, budget: float, alone: bool) -> dict:
    """Median seconds of both directions, here and (unless alone) in the reference; peak memory of the process in GB."""
    here = slice(0, 1 if alone else 2)
    shape = (batch, *((2,) if codec.channels == 2 else ()), round(seconds * codec.sample_rate))
    audio = (0.1 * np.random.default_rng(0).standard_normal(shape)).astype(np.float32)
    for pair in calls(codec, model, audio[..., : round(WARM * codec.sample_rate)]).values():
        for function in pair[here]:
            function()
    row = {}
    for direction, pair in calls(codec, model, audio).items():
        times = timing.take(pair[here], budget)
        names = (direction, f"{direction}_torch")
        row |= {name: statistics.median(found) for name, found in zip(names, times, strict=False)}
        row[f"{direction}_times"] = len(times[0])
    scale = 1 if sys.platform == "darwin" else 1024
    return row | {"peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 1e9}


def shown(row: dict) -> str:
    """A line of the table; `-` for what was not measured."""
    cells = []
    for direction in ("encode", "decode"):
        here, reference = row[direction], row.get(f"{direction}_torch")
        beside = f"{reference:8.3f} {here / reference:6.2f}" if reference else f"{'-':>8s} {'-':>6s}"
        cells.append(f"{here:8.3f} {beside}")
    return f"{row['codec']:14s} {row['seconds']:6g}s {row['rows']:4d}   {'   '.join(cells)}   {row['peak_gb']:7.1f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codecs", default=",".join(MODELS), help="some of them, separated by commas")
    parser.add_argument("--seconds", default="1,10,60", help="lengths of the audio (default: %(default)s)")
    parser.add_argument("--rows", default="1,8", help="batch sizes (default: %(default)s)")
    parser.add_argument("--budget", type=float, default=20.0, help="seconds for each number (default: %(default)s)")
    parser.add_argument("--alone", action="store_true", help="without the reference")
    parser.add_argument("--out", type=Path, help="also write the numbers to this JSON file")
    flags = parser.parse_args()
    try:
        import torch
        import transformers
    except ImportError as error:
        raise InputError(
            f"{error.name} is not installed; the reference needs: pip install 'audiolm-jax[parity]'"
        ) from None
    for name in flags.codecs.split(","):
        if name not in MODELS:
            raise InputError(f"--codecs={flags.codecs}: there is no {name!r}; known are {', '.join(MODELS)}")
    threads = timing.cores()
    torch.set_num_threads(threads)
    print(
        f"{platform.processor() or platform.machine()}, {threads} threads, load {os.getloadavg()[0]:.1f}; Python "
        f"{platform.python_version()}, jax {jax.__version__} ({jax.default_backend()}), torch {torch.__version__}, "
        f"transformers {transformers.__version__}\nmedian seconds; ratio: here / reference"
    )
    columns = "   ".join(f"{direction:>8s} {'torch':>8s} {'ratio':>6s}" for direction in ("encode", "decode"))
    print(f"{'codec':14s} {'audio':>7s} {'rows':>4s}   {columns}   peak GB")
    rows = []
    for name in flags.codecs.split(","):
        codec, model = opened(name)
        for seconds in map(float, flags.seconds.split(",")):
            for batch in map(int, flags.rows.split(",")):
                row = {"codec": name, "seconds": seconds, "rows": batch}
                row |= measured(codec, model, batch, seconds, flags.budget, flags.alone)
                rows.append(row)
                print(shown(row), flush=True)
                if flags.out:
                    files.write_json(flags.out, rows)
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
