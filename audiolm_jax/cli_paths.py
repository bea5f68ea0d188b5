"""What the command line asks of the files and folders that are named to it; a sentence for each that does not do."""

import argparse
from pathlib import Path

from audiolm_jax.errors import InputError


def recording(path: Path, sample_rate: int):
    """A prompt, float32 [samples] at `sample_rate`. Raises InputError if it cannot be used."""
    from audiolm_jax import corpora
    from audiolm_jax.corpora import folder

    try:
        return folder.load(str(path), corpora.CorpusConfig(name="folder", sample_rate=sample_rate))[0]
    except corpora.Reject as reason:
        raise InputError(f"--prompt={path}: {reason}; give a wav, flac, ogg or mp3 recording of speech") from None


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
