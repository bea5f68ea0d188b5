"""Parts of recordings: segments that a list names, and those into which a recording over corpus.max_seconds is cut.

With word times it is cut in the longest breaks between words. Without a text it is cut into parts of one length, and
with corpus.long = pauses each border moves to the quietest moment around it, if that is a pause. The borders follow
from the length of the recording, which its header tells, and from the samples around them alone: a long recording is
not decoded to be listed, and both parts beside a border find it at the same place.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from audiolm_jax.data.corpora import CorpusConfig, Reject

Words = tuple[tuple[str, float, float], ...]

BESIDE = 0.25  # seconds kept before the first and after the last word of a part, as far as the breaks reach
ROUNDED = 0.1  # seconds by which times of a list may miss the end of a recording
_SEARCH = 2.0  # seconds before and after a border in which a pause is looked for, at most
_PAUSE, _STEP = 0.2, 0.02  # seconds
_QUIET = 0.05  # of the mean power around it; louder is no pause


@dataclass(frozen=True)
class Part:
    """A part of a recording from `start` to `stop` (None: its end), in seconds or in samples of its file.

    before, after: seconds by which start and stop may move to a pause.
    """

    start: float
    stop: float | None = None
    samples: bool = False
    before: float = 0.0
    after: float = 0.0

    @property
    def name(self) -> str:
        """Unlike that of any other part of the recording."""
        digits = 0 if self.samples else 3
        return f"{self.start:.{digits}f}-{'' if self.stop is None else f'{self.stop:.{digits}f}'}"

    def inside(self, rate: int, frames: int | None) -> tuple[int, int | None]:
        """First and last sample (exclusive) of a recording with so many (None: not known).

        Raises Reject if the part does not lie in it.
        """
        scale = 1 if self.samples else rate
        first, last = round(self.start * scale), None if self.stop is None else round(self.stop * scale)
        if frames is None:
            return first, last
        tolerance = round(ROUNDED * rate)
        if first >= frames or (last is not None and last > frames + tolerance):
            until = "its end" if last is None else f"{last / rate:.2f} s"
            raise Reject(
                f"its list names a part from {first / rate:.2f} s to {until}, the recording has {frames / rate:.2f} s"
            )
        if last is None or (first == 0 and last > frames - tolerance):  # a duration alone, rounded: all of it
            last = frames
        return first, min(last, frames)


@dataclass(frozen=True)
class Piece:
    """A part with its own text and words."""

    part: Part
    text: str
    words: Words


def pieces(seconds: float, text: str, words: Words, config: CorpusConfig, start: float = 0.0) -> list[Piece]:
    """The parts of a recording, or of its part from `start` on, which is `seconds` > corpus.max_seconds long.

    text: cleaned. words: times from the beginning of the recording.

    Raises Reject if it cannot be cut.
    """
    too_long = f"too long: {seconds:.1f} s, corpus.max_seconds is {config.max_seconds}"
    if config.long == "reject":
        raise Reject(too_long)
    if config.long == "pauses" and words:
        groups = _between_words(words, start, start + seconds, config.max_seconds)
        if groups is None:
            raise Reject(f"{too_long}, and the times of its words do not tell where to cut it")
        return _with_texts(groups, text, words)
    if config.long == "pauses" and text:
        raise Reject(
            f"{too_long}, and its text cannot be cut without the times of its words (words in a manifest); for "
            "captions set corpus.long=windows"
        )
    search = min(_SEARCH, config.max_seconds / 10) if config.long == "pauses" else 0.0
    count = math.ceil(seconds / (config.max_seconds - 2 * search) - 1e-9)
    borders = [start + seconds * number / count for number in range(count + 1)]
    parts = []
    for number in range(count):
        before, after = (search if 0 < border < count else 0.0 for border in (number, number + 1))
        parts.append(Part(borders[number], borders[number + 1], before=before, after=after))
    return [Piece(part, text, ()) for part in parts]


def _between_words(words: Words, start: float, stop: float, longest: float) -> list[tuple[Part, int, int]] | None:
    """(part, first word, last word exclusive), or None if the times are out of order or a word is too long."""
    times = [time for _, *both in words for time in both]
    if times != sorted(times) or times[0] < start - ROUNDED or times[-1] > stop + ROUNDED:
        return None
    between = [(one[2], other[1]) for one, other in itertools.pairwise(words)]
    edges = [(start, words[0][1]), *between, (words[-1][2], stop)]
    begins = [max(after - BESIDE, (before + after) / 2) for before, after in edges[:-1]]
    ends = [min(before + BESIDE, (before + after) / 2) for before, after in edges[1:]]
    found, waiting = [], [(0, len(words))]
    while waiting:
        first, last = waiting.pop()
        if ends[last - 1] - begins[first] <= longest:
            found.append((Part(max(begins[first], start), min(ends[last - 1], stop)), first, last))
            continue
        if last - first == 1:
            return None
        middle = (begins[first] + ends[last - 1]) / 2
        reach = (ends[last - 1] - begins[first]) / 3
        inner = [n for n in range(first + 1, last) if abs(words[n][1] - middle) <= reach] or range(first + 1, last)
        border = max(inner, key=lambda n: (edges[n][1] - edges[n][0], -abs(words[n][1] - middle)))
        waiting += [(border, last), (first, border)]
    return found


def _with_texts(groups: list[tuple[Part, int, int]], text: str, words: Words) -> list[Piece]:
    """Each part with its words, timed from its start, and the words of the text, with their punctuation, if as many."""
    written, counts = text.split(), [len(word.split()) for word, _, _ in words]
    borders = np.cumsum([0, *counts])
    out = []
    for part, first, last in groups:
        own = " ".join(word for word, _, _ in words[first:last])
        if len(written) == borders[-1]:
            own = " ".join(written[borders[first] : borders[last]])
        out.append(Piece(part, own if text else "", shifted(words[first:last], part.start)))
    return out


def shifted(words: Words, start: float) -> Words:
    """The words with times from `start` on."""
    return tuple(
        (word, round(max(begin - start, 0.0), 4), round(max(end - start, 0.0), 4)) for word, begin, end in words
    )


def of_part(words: Words, part: Part, rate: float) -> Words:
    """Words of a whole recording, timed from the start of a part that holds them all. rate: of its samples.

    Raises Reject if they lie outside of it.
    """
    scale = rate if part.samples else 1.0
    start, stop = part.start / scale, math.inf if part.stop is None else part.stop / scale
    if start and any(begin < start - ROUNDED or end > stop + ROUNDED for _, begin, end in words):
        raise Reject("its words lie outside of its part; their times count from the beginning of the recording")
    return shifted(words, start) if start else words


def borders(part: Part, rate: int, first: int, last: int, read: Callable[[int, int], np.ndarray]) -> np.ndarray:
    """The samples [samples, channels] of a part from `first` to `last`, its ends moved to pauses.

    read: samples of the recording from one number to another.
    """
    before, after = round(part.before * rate), round(part.after * rate)
    samples = read(first - before, last + after)
    begin = _pause(samples[: 2 * before], rate) if before else 0
    end = len(samples) - 2 * after + _pause(samples[len(samples) - 2 * after :], rate) if after else len(samples)
    return samples[begin:end]


def _pause(samples_NC: np.ndarray, rate: int) -> int:
    """Where to cut: in the middle of the quietest fifth of a second if it is a pause, else in the middle of it all."""
    step, wide = max(round(_STEP * rate), 1), round(_PAUSE / _STEP)
    blocks = len(samples_NC) // step
    if blocks < 2 * wide:
        return len(samples_NC) // 2
    mono = samples_NC[: blocks * step].mean(axis=1, dtype=np.float64)
    power = ((mono - mono.mean()) ** 2).reshape(blocks, step).mean(axis=1)
    smooth = np.convolve(power, np.full(wide, 1 / wide), "valid")
    quietest = int(smooth.argmin())
    if smooth[quietest] >= _QUIET * power.mean():
        return len(samples_NC) // 2
    return quietest * step + wide * step // 2
