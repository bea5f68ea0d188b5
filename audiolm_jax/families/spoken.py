"""Training rows of a family whose text stands beside the audio: the prompt of a text, and its recording."""

from typing import Any

import numpy as np

from audiolm_jax.data.batches import KEYS, with_totals
from audiolm_jax.data.config import DataConfig
from audiolm_jax.data.tokens import TokenSplit
from audiolm_jax.errors import InputError
from audiolm_jax.serialization import Grid
from audiolm_jax.serialization.documents import causal_row
from audiolm_jax.serialization.vocab import Vocab


class Spoken:
    """A `batches.View`: a whole recording with its text.

    prompts: has `example(text, speaker, codes_TQ) -> document`. Raises InputError for a recording without a text,
    or that a row does not hold.
    """

    def __init__(self, source: TokenSplit, config: DataConfig, grid: Grid, vocab: Vocab, prompts: Any):
        self._grid, self._vocab, self._prompts = grid, vocab, prompts
        self.lengths = dict.fromkeys(KEYS, config.sequence_length)
        for index in range(len(source)):
            head = source.head(index)
            if not head["text"].strip():
                raise InputError(
                    f"{source.path}: {head['key']!r} has no text; fine-tuning needs one for each recording (audiolm "
                    "prepare takes a .txt of the same name, a metadata.csv or a .jsonl manifest)"
                )
            document = prompts.example(head["text"], head["speaker"], np.zeros((1, vocab.codebooks), np.int32))
            needed = sum(len(values) for kind, values in document if kind == "given") + head["frames"] + 1
            if needed > config.sequence_length or head["frames"] > vocab.max_frames:
                raise InputError(
                    f"{source.path}: {head['key']!r} takes {needed} positions with its prompt, of which "
                    f"{head['frames']} are frames; data.sequence_length={config.sequence_length} or the "
                    f"{vocab.max_frames} frames of this model hold less: raise it, or cut the recording"
                )

    def __call__(self, index: int, example: dict) -> dict[str, np.ndarray]:
        codes_TQ = np.asarray(example["codes"])[:, : self._vocab.codebooks].astype(np.int32)
        document = self._prompts.example(example["text"], example["speaker"], codes_TQ)
        return with_totals(causal_row(document, self._grid, self._vocab), len(codes_TQ), example["number"])
