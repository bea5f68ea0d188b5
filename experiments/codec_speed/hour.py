"""Memory and time of `audiolm codec encode` and `decode` on an hour of audio, on random weights of the published sizes.

    python -m experiments.codec_speed.hour                          the codecs that stream
    python -m experiments.codec_speed.hour --codecs dac_16khz --minutes 10

Prints the peak resident memory of each command's process, that of a process that only opens the codec, and the
difference, which must not grow with the length. Needs the reference: pip install 'audiolm-jax[parity]'.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

from audiolm_jax.errors import InputError, exit_code
from experiments.codec_speed.bench import CLASSES, MODELS


def write_recording(path: Path, seconds: float, rate: int, channels: int) -> None:
    """Noise that swells and fades, 16 bits, written in pieces."""
    rng = np.random.default_rng(0)
    with soundfile.SoundFile(path, "w", rate, channels, "PCM_16") as file:
        left = round(seconds * rate)
        while left:
            count = min(left, 10 * rate)
            swell = 0.1 * (1 + np.sin(np.arange(count) / rate))[:, None]
            file.write((swell * rng.standard_normal((count, channels))).clip(-1, 1).astype(np.float32))
            left -= count


def write_codec(folder: Path, name: str) -> None:
    """A folder of random weights, in a process of its own: torch is large."""
    kind, changes = MODELS[name]
    script = (
        f"import torch, transformers; torch.manual_seed(0); c = transformers.{CLASSES[kind]}Config(**{changes!r}); "
        f"transformers.{CLASSES[kind]}Model(c).save_pretrained({str(folder)!r})"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, stdout=subprocess.DEVNULL)


def measured(*arguments: str) -> tuple[float, float]:
    """(peak resident memory in GB, seconds) of `audiolm` with these arguments."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "audiolm_jax", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise InputError(f"{' '.join(arguments)}: {said.strip().splitlines()[-1]}")
    scale = 1 if sys.platform == "darwin" else 1024
    return usage.ru_maxrss * scale / 1e9, time.perf_counter() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codecs", default="default,encodec_24khz,mimi", help="default, or of bench.py, with commas")
    parser.add_argument("--minutes", type=float, default=60.0, help="length of the audio (default: %(default)s)")
    flags = parser.parse_args()
    for name in flags.codecs.split(","):
        if name not in ("default", *MODELS):
            raise InputError(f"--codecs={flags.codecs}: there is no {name!r}; known are default, {', '.join(MODELS)}")
    columns = " ".join(f"{what:>7s} GB {'more':>6s} {'s':>6s}" for what in ("encode", "decode"))
    print(f"{'codec':14s} {'open GB':>8s} {columns}")
    for name in flags.codecs.split(","):
        with tempfile.TemporaryDirectory() as folder:
            there, source, rate, channels = Path(folder), ["--codec", "default"], 16000, 1
            if name != "default":
                kind, changes = MODELS[name]
                write_codec(there, name)
                source = ["--codec", kind, "--path", folder]
                rate = changes.get("sampling_rate", {"dac": 16000}.get(kind, 24000))
                channels = changes.get("audio_channels", 1)
            write_recording(there / "hour.wav", 60 * flags.minutes, rate, channels)
            out = ["--out", str(there / "out")]
            first, _ = measured("codec", "info", *source)
            encode, seconds = measured("codec", "encode", *source, *out, str(there / "hour.wav"))
            decode, later = measured("codec", "decode", *source, *out, str(there / "out" / "hour.npz"))
            print(
                f"{name:14s} {first:8.2f} {encode:10.2f} {encode - first:6.2f} {seconds:6.0f} {decode:10.2f} "
                f"{decode - first:6.2f} {later:6.0f}",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
