"""What the command line asks of the files and folders that are named to it; a sentence for each that does not do."""

import argparse
from pathlib import Path

from audiolm_jax.errors import InputError


def recording(path: Path | None, sample_rate: int, flag: str):
    """What a flag names, float32 [samples] at `sample_rate`, or None. Raises InputError if it cannot be used."""
    if path is None:
        return None
    from audiolm_jax.data import corpora
    from audiolm_jax.data.corpora import folder

    try:
        # What is too long for a model is told by that model.
        return folder.load(str(path), corpora.CorpusConfig("folder", sample_rate=sample_rate, max_seconds=3600.0))[0]
    except corpora.Reject as reason:
        raise InputError(f"{flag}={path}: {reason}; give a wav, flac, ogg or mp3 recording") from None


def data_folder(options: argparse.Namespace) -> Path:
    data = options.data or options.workdir / "data"
    if not (data / "tokens").is_dir():
        raise InputError(f"--data={data}: there are no tokens there; make them with: audiolm prepare --data {data}")
    return data


def run_folder(workdir: Path) -> None:
    if not (workdir / "checkpoints").is_dir():
        raise InputError(
            f"--workdir={workdir}: there is no trained run; make one with: audiolm train --workdir {workdir}"
        )
