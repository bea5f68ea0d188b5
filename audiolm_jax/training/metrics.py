"""Logs of a training run: metrics.jsonl, TensorBoard, a progress bar, speed and MFU."""

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from audiolm_jax import files
from audiolm_jax.model.config import ModelConfig
from audiolm_jax.model.losses import class_names
from audiolm_jax.serialization import cost
from audiolm_jax.serialization.vocab import HEAD_CODE, Vocab


def train_flops(
    config: ModelConfig, vocab: Vocab, rows: int, positions: int, count_X: np.ndarray, depth_fraction: float = 1.0
) -> float:
    """FLOPs of one training step, forward and backward, without recomputation: `cost.flops` times 3.

    The numerator of the logged MFU. Of attention half of every square counts, less half of what a window hides; of the
    logits the legal set of every prediction. count_X: predictions by class (`losses.class_names`). Padding and packed
    documents count as if a row were one document, so the number depends on shapes and predictions alone.
    depth_fraction: of the positions, those that the depth network computes.
    """
    sizes = [vocab.code_start, vocab.max_frames, *vocab.codebook_sizes, 0]
    logits_X = np.multiply(count_X, sizes)
    hidden = max(0, positions - config.window) if config.window else 0
    pairs = rows * (positions**2 - hidden**2) / 2
    if config.depth is None:
        return 3 * cost.flops(config, rows * positions, pairs, float(logits_X.sum()))
    finer = slice(HEAD_CODE, HEAD_CODE + vocab.codebooks - 1)  # of the classes; the depth network predicts them
    own = cost.flops(config, rows * positions, pairs, float(logits_X.sum() - logits_X[finer].sum()))
    in_depth = rows * positions * cost.depth_flops(config, vocab.codebooks - 1, 0)
    in_depth += 2 * config.depth.width * logits_X[finer].sum()
    return 3 * (own + depth_fraction * float(in_depth))


class Recorder:
    """Writes one line per logging interval, in process 0.

    A resume at `step` drops the later lines, so that metrics.jsonl is that of a run that never stopped. Columns: step;
    loss (weighted mean of the nats per prediction, z-loss included); bits per prediction of each class; grad_norm,
    parameter_norm and learning_rate of the last step; frames (of audio, in the interval); seconds (of training, over
    all resumes); and steps_per_second, audio_seconds_per_second and mfu since the line before, also if the run was
    resumed in between. Held-out numbers are lines of their own, {"step", name: number, ...}.

    An object store cannot append: there `save` and `close` write the file anew.
    """

    def __init__(self, workdir: Path, vocab: Vocab, step: int, seconds: float, steps: int, progress: bool):
        from tqdm import tqdm

        self.names = class_names(vocab)
        self.start = time.perf_counter() - seconds
        self.last = (0, 0.0)  # step and seconds of the latest line
        self.writes = jax.process_index() == 0
        self.path = workdir / "metrics.jsonl"
        self.file = self.board = self.lines = None
        if self.writes:
            self.last = truncate(self.path, step)
            self.board = _board(workdir, step + 1)
            if files.remote(workdir):
                self.lines = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
            else:
                self.file = self.path.open("a", encoding="utf-8")
        self.bar = tqdm(total=steps, initial=step, unit="step", disable=not (progress and self.writes))

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.start

    def log(self, step: int, metrics: dict[str, Any], flops: float, peak: float, frame_rate: float) -> dict[str, Any]:
        """metrics: of the step (host arrays); flops: of the interval. Returns the line written."""
        sums = metrics["sums"]
        before, since = self.last
        elapsed = max(self.seconds - since, 1e-9)
        nats_X, count_X = np.asarray(sums["nll_X"]), np.asarray(sums["count_X"])
        line = {
            "step": step,
            "loss": float(sums["total"] / max(sums["weight"], 1e-9)),
            "bits": {
                name: float(nats / count / np.log(2))
                for name, nats, count in zip(self.names, nats_X, count_X, strict=True)
                if count
            },
            "grad_norm": float(metrics["grad_norm"]),
            "parameter_norm": float(metrics["parameter_norm"]),
            "learning_rate": float(metrics["learning_rate"]),
            "frames": int(sums["frames"]),
            "seconds": self.seconds,
            "steps_per_second": (step - before) / elapsed,
            "audio_seconds_per_second": float(sums["frames"]) / frame_rate / elapsed,
            "mfu": flops / elapsed / peak,
        }
        self.last = (step, line["seconds"])
        self._write(line)
        if self.board:
            scalars = {f"training/{name}": value for name, value in line.items() if name not in ("step", "bits")}
            scalars |= {f"bits/{kind}": bits for kind, bits in line["bits"].items()}
            for name, value in scalars.items():
                self.board.add_scalar(name, value, step)
        self.bar.set_postfix_str(
            f"loss {line['loss']:.3f}, {line['audio_seconds_per_second']:.0f} audio s/s, mfu {line['mfu']:.0%}",
            refresh=False,
        )
        return line

    def _write(self, line: dict[str, Any]) -> None:
        if self.lines is not None:
            self.lines += json.dumps(line) + "\n"
        elif self.file:
            self.file.write(json.dumps(line) + "\n")
            self.file.flush()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Does not count the time in the block as training."""
        before = time.perf_counter()
        yield
        self.start += time.perf_counter() - before

    def evaluated(self, step: int, values: dict[str, float]) -> None:
        """Writes a line of held-out numbers."""
        self._write({"step": step, **values})
        for name, value in values.items() if self.board else ():
            self.board.add_scalar(f"valid/{name}", value, step)

    def probe(self, step: int, values: dict[str, Any]) -> None:
        """name -> number, or (waveform [samples], sample rate in Hz)."""
        if not self.board:
            return
        for name, value in values.items():
            if isinstance(value, tuple):
                waveform_N, sample_rate = value
                self.board.add_audio(name, np.asarray(waveform_N, np.float32), step, sample_rate=sample_rate)
            else:
                self.board.add_scalar(name, float(value), step)

    def save(self) -> None:
        """Writes the lines so far to an object store."""
        if self.lines is not None:
            files.write_text(self.path, self.lines)

    def close(self) -> None:
        self.bar.close()
        self.save()
        if self.file:
            self.file.close()
        if self.board:
            self.board.close()


def _board(workdir: Path, step: int) -> Any:
    """The writer of TensorBoard files from `step` on; None if tensorboardX lacks the package for this address."""
    from tensorboardX import SummaryWriter

    try:
        return SummaryWriter(str(workdir / "tensorboard"), purge_step=step)
    except ImportError as error:
        logging.warning("%s: no TensorBoard files: %s", workdir, error)
        return None


def truncate(path: Path, step: int) -> tuple[int, float]:
    """Drops the lines of a metrics file that lie beyond `step`, and a last line cut off by a kill.

    Returns step and seconds of the last line that has them, (0, 0.0) without one.
    """
    lines, last = [], (0, 0.0)
    if not path.exists():
        return last
    for text in path.read_bytes().decode("utf-8", "replace").splitlines():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            break
        at = line.get("step") if isinstance(line, dict) else None
        if not isinstance(at, int) or at > step:
            break
        lines.append(text + "\n")
        last = (at, line["seconds"]) if isinstance(line.get("seconds"), int | float) else last
    files.write_text(path, "".join(lines))
    return last
