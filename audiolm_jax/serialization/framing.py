"""Framings: the ids around the audio of a document, which of them are predicted, the end of a segment.

    markers   BOS  segments ...  <audio>  steps ... </audio>  segments ...  EOS
              Ends are predicted: </audio> on stream 0 once codebook 0 has run out, EOS after the last segment.
    bare      states ...  fillers  steps ...
              MusicGen (arXiv 2306.05284): one position of filler ids opens the only audio segment; stream q holds its
              filler before its first code and after its last. No end is predicted, so a length is required. All
              codebooks of a training segment were cut at the same step, so the model has never seen a segment whose
              codebook 0 has run out: when it generates, codebook 0 goes on until the last codebook has its frames.

A framing is an object with the attributes of `Markers`, chosen from `FRAMINGS` by name, and an attribute of a `Grid`.
`build` is a `documents.Builder`.
"""

import dataclasses
from typing import Any

import numpy as np

from audiolm_jax.errors import InputError
from audiolm_jax.serialization import vocab as ids
from audiolm_jax.serialization.vocab import Vocab


@dataclasses.dataclass(frozen=True)
class Markers:
    """BOS, <audio>, </audio> and EOS; text and audio in any order and number. The default."""

    name = "markers"
    ends = True  # the model predicts where audio ends; otherwise a number of frames is required

    def validate(self, grid: Any) -> None:
        """Raises InputError if a grid does not fit this framing."""

    def check(self, kinds: list[str]) -> None:
        """Raises InputError if a document with segments of these kinds does not fit this framing."""

    def extra_ids(self, codebooks: int) -> int:
        """Number of ids of its own, after all others (`Vocab.extra_ids`)."""
        return 0

    def extra_frames(self, grid: Any) -> int:
        """Number of frames that are generated after the requested ones, and dropped."""
        return 0

    def silent_S(self, streams: int, vocab: Vocab) -> np.ndarray:
        """Int32 [S]: the id of each stream where its codebook has no code."""
        return np.full(streams, ids.PAD, np.int32)

    def end(self, vocab: Vocab) -> int:
        """The id of stream 0 after the last frame of codebook 0."""
        return ids.END_AUDIO

    def begin(self, build: Any) -> None:
        """Adds the positions before the first segment."""
        build.see(ids.BOS)

    def open(self, build: Any, vocab: Vocab, text_weight: float) -> None:
        """Adds the positions before the steps of an audio segment; the last one predicts the first step."""
        build.then(ids.AUDIO, ids.HEAD_TEXT, text_weight)

    def finish(self, build: Any, text_weight: float) -> None:
        """Adds the prediction after the last segment."""
        build.expect(ids.EOS, ids.HEAD_TEXT, text_weight, at=build.length - 1)


@dataclasses.dataclass(frozen=True)
class Bare:
    """Filler ids for begin and pad, one for each codebook; one audio segment, whose length is requested."""

    name = "bare"
    ends = False

    def validate(self, grid: Any) -> None:
        if grid.streams != grid.codebooks or grid.causal_levels != grid.codebooks:
            raise InputError(
                f"the framing 'bare' has a filler id for each of {grid.codebooks} codebooks; the strategy "
                f"{grid.config.strategy!r} has no causal stream for each (parallel and delay do)"
            )

    def check(self, kinds: list[str]) -> None:
        if kinds[-1:] != ["audio"] or any(kind != "states" for kind in kinds[:-1]):
            raise InputError(
                f"a document of {' and '.join(kinds)} was given; of the framing 'bare' it is one audio segment, before "
                "it nothing but states: text goes through an encoder"
            )

    def extra_ids(self, codebooks: int) -> int:
        return codebooks

    def extra_frames(self, grid: Any) -> int:
        return max(int(grid.position(0, q, 1)) for q in range(grid.codebooks))

    def silent_S(self, streams: int, vocab: Vocab) -> np.ndarray:
        return vocab.extra_start + np.arange(streams, dtype=np.int32)

    def end(self, vocab: Vocab) -> int:
        return vocab.extra_start

    def begin(self, build: Any) -> None:
        pass

    def open(self, build: Any, vocab: Vocab, text_weight: float) -> None:
        build.see(self.silent_S(build.streams, vocab)[None])

    def finish(self, build: Any, text_weight: float) -> None:
        pass


Framing = Markers | Bare
FRAMINGS: dict[str, Framing] = {framing.name: framing for framing in (Markers(), Bare())}
