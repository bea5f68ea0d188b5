"""Grids of codes from known distributions, for which the best likelihood that any strategy can reach is computable.

A source is a Markov chain that emits one frame of Q codes at a time, after a text, and then ends. Nothing in it is
hidden: its state is a function of the text and of the codes so far. So the probability of a grid is a product along
one path, all grids can be listed (`outcomes`), and drawing from the list is drawing from the source. What a given
order on the grid can reach is computed from the same list (`evaluation/floor.py`).

A source is one file with these functions, chosen from `SOURCES` by a letter, which is also its first byte of text:

    texts()         {text after the letter: probability}
    start(text)     the state before the first frame
    step(state)     [(probability, frame, next state), ...] over the frames that may come next, a frame being a tuple
                    of Q codes; `END` in its place ends the grid. No two entries have the same frame

All have Q = 3 codebooks of K = 3 codes and at most 9 frames: one vocabulary, so that one network can learn them all.
"""

import collections
import dataclasses
import functools
from collections.abc import Iterable
from types import ModuleType

import numpy as np

from audiolm_jax.errors import InputError
from audiolm_jax.serialization.text import UTF8

CODEBOOKS, CODEBOOK_SIZE, MAX_FRAMES = 3, 3, 9
END = "end"

# Frames of the sources whose length has nothing to do with their codes.
LENGTHS = {2: 0.1, 3: 0.2, 4: 0.3, 5: 0.4}


def unless_ended(frames: int, following: Iterable[tuple]) -> list[tuple]:
    """A `step` after so many frames: the end with the hazard of `LENGTHS`, or one of `following`, which sum to one."""
    end = LENGTHS.get(frames, 0.0) / sum(p for length, p in LENGTHS.items() if length >= frames)
    return [(end, END, None), *(((1 - end) * p, frame, after) for p, frame, after in following)]


def either(code: int, p: float) -> list[tuple[float, int]]:
    """`code` with probability p, the next one (modulo K) otherwise: the noise of most cells here."""
    return [(p, code % CODEBOOK_SIZE), (1 - p, (code + 1) % CODEBOOK_SIZE)]


@dataclasses.dataclass(frozen=True)
class Outcomes:
    """All N grids that a source may give after one text, with their probabilities, which sum to one."""

    text: str  # its first letter names the source
    probability_N: np.ndarray
    frames_N: np.ndarray
    codes_NTQ: np.ndarray  # int32, -1 after the end of a grid

    def grid(self, number: int) -> np.ndarray:
        """Codes [T, Q] of one of them."""
        return self.codes_NTQ[number, : self.frames_N[number]]


@functools.cache
def outcomes(text: str) -> Outcomes:
    """Lists the grids of the source that `text` begins with. Raises InputError for a text that it never gives."""
    if text[:1] not in SOURCES or text[1:] not in SOURCES[text[:1]].texts():
        known = [letter + rest for letter, source in SOURCES.items() for rest in source.texts()]
        raise InputError(f"no source gives the text {text!r}; known are {', '.join(known)}")
    source, found = SOURCES[text[0]], []
    # All grids so far by the state that they lead to: [n, frames, Q] and [n]. States are few, grids are many.
    open_grids = {source.start(text[1:]): [(np.zeros((1, 0, CODEBOOKS), np.int32), np.ones(1))]}
    while open_grids:
        longer: dict = collections.defaultdict(list)
        for state, pieces in open_grids.items():
            codes_NTQ, p_N = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
            for p, frame, after in source.step(state):
                if frame == END and p > 0:
                    found.append((codes_NTQ, p_N * p))
                elif p > 0:
                    frame_N1Q = np.broadcast_to(np.int32(frame), (len(p_N), 1, CODEBOOKS))
                    longer[after].append((np.concatenate([codes_NTQ, frame_N1Q], axis=1), p_N * p))
        open_grids = longer
    longest = max(codes_NTQ.shape[1] for codes_NTQ, _ in found)
    padded = [np.pad(x, ((0, 0), (0, longest - x.shape[1]), (0, 0)), constant_values=-1) for x, _ in found]
    frames_N = np.concatenate([np.full(len(x), x.shape[1]) for x, _ in found])
    return Outcomes(text, np.concatenate([p_N for _, p_N in found]), frames_N, np.concatenate(padded))


def texts(letters: str = "") -> dict[str, float]:
    """Every text of the sources named by `letters` ("": all), which are equally likely, with its probability.

    A source named twice is twice as likely.
    """
    letters = letters or "".join(SOURCES)
    share = {letter: letters.count(letter) / len(letters) for letter in letters}
    return {letter + text: share[letter] * p for letter in share for text, p in SOURCES[letter].texts().items()}


def draw(rng: np.random.Generator, count: int, letters: str = "") -> list[tuple[str, int]]:
    """`count` independent grids of the sources named by `letters`, as (text, number in `outcomes(text)`)."""
    chances = texts(letters)
    text_C = rng.choice(list(chances), count, p=list(chances.values()))
    drawn_C = np.zeros(count, int)
    for text in chances:
        listed, here_C = outcomes(text), text_C == text
        unit_N = listed.probability_N / listed.probability_N.sum()  # it is one up to rounding; `choice` insists
        drawn_C[here_C] = rng.choice(len(unit_N), here_C.sum(), p=unit_N)
    return [(str(text), int(n)) for text, n in zip(text_C, drawn_C, strict=True)]


class Split:
    """Drawn grids with the reading side of `tokens.TokenSplit`, so that data/batches.py serves them like recordings."""

    text = UTF8

    def __init__(self, drawn: list[tuple[str, int]], split: str):
        self.path, self.split = "sources", split
        self._drawn = [(text, outcomes(text).grid(number)) for text, number in drawn]
        self.metadata = {
            "codebooks": CODEBOOKS,
            "codebook_size": CODEBOOK_SIZE,
            "frame_rate": 1.0,
            "max_frames": MAX_FRAMES,
        }

    def __len__(self) -> int:
        return len(self._drawn)

    def __getitem__(self, index: int) -> dict:
        text, codes_TQ = self._drawn[index]
        return {"key": str(index), "speaker": "", "text": text, "codes": codes_TQ}

    def head(self, index: int) -> dict:
        text, codes_TQ = self._drawn[index]
        return {"key": str(index), "speaker": "", "text": text, "frames": len(codes_TQ)}

    def __repr__(self) -> str:
        return f"Split({self.split!r}, {len(self)} grids)"


from experiments.entropy_floor.sources import (  # noqa: E402  the sources use the names above
    aligned,
    framewise,
    handover,
    independent,
    markov,
    residual,
)

SOURCES: dict[str, ModuleType] = {
    "a": independent,
    "b": framewise,
    "c": markov,
    "d": residual,
    "e": handover,
    "f": aligned,
}
