"""Framings: the ids around the audio of a document, which of them are predicted, the end of a segment.

    markers   BOS  segments ...  <audio>  steps ... </audio>  segments ...  EOS
              Ends are predicted: </audio> on stream 0 once codebook 0 has run out, EOS after the last segment.
    delimited BOS  <text> text </text>  <audio>  steps ... </audio>  <text> ...  EOS
              SODA: the same with ids around text. They are the last two text ids, predicted like text.
    bare      states ...  fillers  steps ...
              MusicGen (arXiv 2306.05284): one position of filler ids opens the only audio segment; stream q holds its
              filler before its first code and after its last. No end is predicted, so a length is required. All
              codebooks of a training segment were cut at the same step, so the model has never seen a segment whose
              codebook 0 has run out: when it generates, codebook 0 goes on until the last codebook has its frames.
    zeros     text  steps ... frame of zeros  text  steps ...
              CSM: nothing stands between text, which is given, and audio, which ends with a frame of code 0 in every
              codebook. That frame is predicted code by code like any other, so it needs a depth network. It always
              means the end: no segment holds such a frame, and the first one cannot be it. So a segment of T frames
              has the probability of all their codes times that of the zeros at frame T, where only the last code of
              frame 0, after zeros, lacks code 0; sampling draws from the same sets and stops at zeros in all codebooks
              (transformers 5.23.0 stops at zeros in all but the last one and cuts at zeros in all).
    beside    positions that are given ...  steps ... end
              Qwen3-TTS (arXiv 2601.15621): every position has one more token, of a text that is given beside the other
              streams and never predicted. Segments of "given" positions come first, the last of which predicts the
              first step; "beside" is the text of the steps, whose last token goes on to the end. A document holds one
              audio segment, after which nothing is predicted.

A framing is chosen from `FRAMINGS` by name, and an attribute of a `Grid`. `build` is a `documents.Builder`.
"""

import dataclasses
from typing import Any

import numpy as np

from audiolm_jax.errors import InputError
from audiolm_jax.serialization import vocab as ids
from audiolm_jax.serialization.vocab import Vocab


@dataclasses.dataclass(frozen=True)
class Framing:
    """What a framing decides, each with what most of them do."""

    name: str
    ends = True  # the model predicts where audio ends; otherwise a number of frames is required
    end_is_frame = False  # the end is a frame of code 0 in every codebook, not an id of stream 0
    texts = 0  # tokens of a position beside those of its streams: 0, or 1 of a text that is given
    around_text = 0  # ids around a text segment

    def validate(self, grid: Any) -> None:
        """Raises InputError if a grid does not fit this framing."""

    def check(self, kinds: list[str]) -> None:
        """Raises InputError if a document with segments of these kinds does not fit this framing."""

    def check_codes(self, codes_TQ: np.ndarray) -> None:
        """Raises InputError for codes that no segment of this framing can hold."""

    def extra_ids(self, codebooks: int) -> int:
        """Number of ids of its own, after all others (`Vocab.extra_ids`)."""
        return 0

    def extra_frames(self, grid: Any) -> int:
        """Number of frames that are generated after the requested ones, and dropped."""
        return 0

    def silent_S(self, streams: int, vocab: Vocab) -> np.ndarray:
        """Int32 [S]: the id of each stream where its codebook has no code."""
        return np.full(streams, ids.PAD, np.int32)

    def end(self, vocab: Vocab) -> int | np.ndarray:
        """The id of stream 0 after the last frame of codebook 0; if the end is a frame, one for each codebook [Q]."""
        return ids.END_AUDIO

    def heads(self, heads_LS: np.ndarray, codes_TQ: np.ndarray, vocab: Vocab) -> np.ndarray:
        """The legal sets of a segment, some of which may depend on its codes."""
        return heads_LS

    def begin(self, build: Any) -> None:
        """Adds the positions before the first segment."""

    def text(self, build: Any, text_L: np.ndarray, vocab: Vocab, text_weight: float) -> None:
        """Adds a text segment."""
        raise NotImplementedError  # of a framing whose `check` takes no text

    def open(self, build: Any, vocab: Vocab, text_weight: float) -> None:
        """Adds the positions before the steps of an audio segment; the last one predicts the first step."""

    def finish(self, build: Any, text_weight: float) -> None:
        """Adds the prediction after the last segment."""


@dataclasses.dataclass(frozen=True)
class Markers(Framing):
    """BOS, <audio>, </audio> and EOS; text and audio in any order and number. The default.

    before_text, after_text: what stands around a text segment, counted back from the end of the text ids.
    """

    name: str = "markers"
    before_text: tuple[int, ...] = ()
    after_text: tuple[int, ...] = ()

    @property
    def around_text(self) -> int:
        return len(self.before_text + self.after_text)

    def begin(self, build: Any) -> None:
        build.see(ids.BOS)

    def text(self, build: Any, text_L: np.ndarray, vocab: Vocab, text_weight: float) -> None:
        before, after = (np.array(part, np.int32) + vocab.code_start for part in (self.before_text, self.after_text))
        build.then(np.concatenate([before, text_L, after]), ids.HEAD_TEXT, text_weight)

    def open(self, build: Any, vocab: Vocab, text_weight: float) -> None:
        build.then(ids.AUDIO, ids.HEAD_TEXT, text_weight)

    def finish(self, build: Any, text_weight: float) -> None:
        build.expect(ids.EOS, ids.HEAD_TEXT, text_weight, at=build.length - 1)


@dataclasses.dataclass(frozen=True)
class Bare(Framing):
    """Filler ids for begin and pad, one for each codebook; one audio segment, whose length is requested."""

    name: str = "bare"
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

    def open(self, build: Any, vocab: Vocab, text_weight: float) -> None:
        build.see(self.silent_S(build.streams, vocab)[None])


@dataclasses.dataclass(frozen=True)
class Zeros(Framing):
    """No ids of its own: text, audio and a frame of code 0 in every codebook."""

    name: str = "zeros"
    end_is_frame = True

    def validate(self, grid: Any) -> None:
        if not grid.depth or len(set(grid.config.delays)) > 1:
            raise InputError(
                f"the framing 'zeros' ends audio with a frame whose {grid.codebooks} codes are predicted one after the "
                "other; it needs the strategy 'depth' without delays, and at least 2 codebooks"
            )

    def check(self, kinds: list[str]) -> None:
        before = [None, *kinds]
        if any(kind == "audio" and last in (None, "audio") for last, kind in zip(before, kinds)):
            raise InputError(
                f"a document of {' and '.join(kinds)} was given; of the framing 'zeros' text stands before every audio "
                "segment, whose first frame it predicts"
            )

    def check_codes(self, codes_TQ: np.ndarray) -> None:
        zeros = np.flatnonzero(~np.any(codes_TQ, axis=1))
        if len(zeros):
            raise InputError(
                f"frame {zeros[0]} of an audio segment is code 0 in every codebook, which means the end of audio for "
                "this model; cut the audio there"
            )

    def end(self, vocab: Vocab) -> np.ndarray:
        return vocab.code_offsets

    def heads(self, heads_LS: np.ndarray, codes_TQ: np.ndarray, vocab: Vocab) -> np.ndarray:
        if codes_TQ[0, :-1].any():
            return heads_LS
        heads_LS = heads_LS.copy()
        heads_LS[0, -1] = vocab.head_not_end
        return heads_LS

    def text(self, build: Any, text_L: np.ndarray, vocab: Vocab, text_weight: float) -> None:
        build.see(text_L)


@dataclasses.dataclass(frozen=True)
class Beside(Framing):
    """Positions that are given, then audio with text beside every step."""

    name: str = "beside"
    texts = 1

    def validate(self, grid: Any) -> None:
        if grid.causal_levels != grid.codebooks:
            raise InputError(
                f"the framing 'beside' has a text token for every position of the causal pass; the strategy "
                f"{grid.config.strategy!r} has passes of another kind"
            )

    def check(self, kinds: list[str]) -> None:
        given = kinds[: kinds.index("beside")] if "beside" in kinds else []
        if not given or set(given) != {"given"} or kinds[len(given) :] != ["beside", "audio"]:
            raise InputError(
                f"a document of {' and '.join(kinds)} was given; of the framing 'beside' it is positions that are "
                "given, the text beside the audio, and one audio segment"
            )


DELIMITED = Markers("delimited", before_text=(-2,), after_text=(-1,))
FRAMINGS: dict[str, Framing] = {framing.name: framing for framing in (Markers(), DELIMITED, Bare(), Zeros(), Beside())}
