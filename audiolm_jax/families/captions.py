"""Training rows with a caption: a part of a recording, and the tokens of its text for the text encoder."""

from collections.abc import Callable

import numpy as np

from audiolm_jax.data.batches import KEYS, longest_row, with_totals
from audiolm_jax.data.config import DataConfig
from audiolm_jax.data.tokens import TokenSplit
from audiolm_jax.errors import InputError
from audiolm_jax.serialization import Grid
from audiolm_jax.serialization.documents import causal_row
from audiolm_jax.serialization.vocab import Vocab


class Captioned:
    """A `batches.View`: one recording per row, with the tokens of its text (none with probability data.drop_text) as
    the feature "text".

    A recording longer than a row, or than vocab.max_frames, is cut to a window drawn uniformly. token_ids: text -> its
    tokens, none of an empty one.

    Raises InputError if a row holds no frame, or no recording has a text.
    """

    def __init__(
        self, source: TokenSplit, config: DataConfig, grid: Grid, vocab: Vocab, seed: int, token_ids: Callable
    ):
        self._config, self._grid, self._vocab, self._seed, self._token_ids = config, grid, vocab, seed, token_ids
        before = longest_row(0, 1, grid) - 2  # positions beside one for every frame
        self._frames = min(vocab.max_frames, config.sequence_length - before)
        if self._frames < 1:
            raise InputError(
                f"data.sequence_length = {config.sequence_length} positions hold no frame of this model; {before} are "
                "taken by its delays"
            )
        longest = max((len(token_ids(source.head(index)["text"])) for index in range(len(source))), default=0)
        if not longest:
            raise InputError(
                f"{source.path}: no recording of split {source.split!r} has a text; fine-tuning needs one for each "
                "(audiolm prepare takes a .txt of the same name, a metadata.csv or a .jsonl manifest)"
            )
        # Few lengths, so that another data set finds the step compiled.
        self.lengths = dict.fromkeys(KEYS, config.sequence_length) | {"text": -(-longest // 16) * 16}

    def __call__(self, index: int, example: dict) -> dict[str, np.ndarray]:
        rng = np.random.default_rng((self._seed, index))
        text = [] if rng.random() < self._config.drop_text else self._token_ids(example["text"])
        codes_TQ = np.asarray(example["codes"])[:, : self._vocab.codebooks].astype(np.int32)
        first = int(rng.integers(max(0, len(codes_TQ) - self._frames) + 1))
        part_TQ = codes_TQ[first : first + self._frames]
        row = causal_row((("audio", part_TQ),), self._grid, self._vocab)
        return {**with_totals(row, len(part_TQ), example["number"]), "text": np.asarray(text, np.int32)}
