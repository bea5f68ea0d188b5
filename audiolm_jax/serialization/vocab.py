"""Token ids: specials, text, one range per codebook, lengths.

    0 PAD  1 BOS  2 EOS  3 <audio>  4 </audio>  5 MASK  6-7 reserved
    8 .. C - 1                text: `text_size` ids, by default one per UTF-8 byte, so that C, `code_start`, is 264
    C + K_0 + .. + code       codes of codebook q, K_q ids each, after those of the codebooks before it
    L + (T - 1)               lengths: T frames, 1 <= T <= max_frames (masked strategies only predict them)
    L + max_frames + n        `extra_ids`, n = 0, 1, ...: what they mean is up to the framing (framing.py)

Structural ids are in no codebook, so no legal frame can be mistaken for an end (CSM's end of audio is a frame of zeros,
which is also a legal frame).

Legal sets. An integer, the *head* of a prediction, says which ids are legal for it: every other id gets probability
zero, in the loss, in the likelihood and in sampling alike.

    0           nothing is predicted here
    1           text, <audio>, EOS
    2           lengths
    3 + q       codebook q
    3 + Q       codebook 0 or </audio>: every frame of the coarsest codebook but the first may be the end instead

and two kinds that a depth network alone predicts, where a frame of zeros ends the audio (framing `zeros`):

    4 + Q       the last codebook but its code 0: after zeros in the first frame, which cannot be the end
    5 + Q + q   codebook q in the frame that is the end
"""

import dataclasses
import functools

import numpy as np

from audiolm_jax.errors import InputError

PAD, BOS, EOS, AUDIO, END_AUDIO, MASK = range(6)
TEXT_START = 8
BYTES = 256  # the text vocabulary that text.py knows

TEXT_APART = 4096  # with more text ids the logits of codes are computed without them

HEAD_NONE, HEAD_TEXT, HEAD_LENGTH, HEAD_CODE = range(4)


@dataclasses.dataclass(frozen=True)
class TextSpec:
    """The text vocabulary of a model.

    path: of the tokenizer.json inside the workdir. fingerprint: sha256 of that file. structural: ids of the tokenizer
    that are no text, as they mean what ids of the model mean (BOS ..). limit: its ids from here on are no text either
    (codes, in SODA); 0: all are.
    """

    vocabulary: str = "bytes"
    path: str = ""
    fingerprint: str = ""
    structural: tuple[int, ...] = ()
    limit: int = 0


@dataclasses.dataclass(frozen=True)
class Vocab:
    """Id ranges for Q `codebooks` of `codebook_size` codes and lengths up to `max_frames` frames."""

    codebooks: int
    codebook_size: int | tuple[int, ...]  # one number for all codebooks, or one for each
    max_frames: int
    extra_ids: int = 0  # of a framing that has ids of its own
    text_size: int = BYTES
    text_given: bool = False  # text is never predicted: beside a depth network the output matrix has no columns for it

    def __post_init__(self) -> None:
        sizes = self.codebook_size if isinstance(self.codebook_size, tuple | list) else (self.codebook_size,)
        numbers = (self.codebooks, *sizes, self.max_frames, self.extra_ids, self.text_size)
        wrong = [n for n in numbers if not isinstance(n, int | np.integer) or isinstance(n, bool) or n >= 2**31]
        if wrong:
            raise InputError(f"a size of the vocabulary is {wrong[0]!r}; it must be an integer below 2**31")
        if not isinstance(self.text_given, bool):
            raise InputError(f"vocab text_given is {self.text_given!r}; it must be true or false")
        if np.ndim(self.codebook_size):
            sizes = tuple(map(int, self.codebook_size))  # a list in the JSON of a checkpoint
            if len(sizes) != self.codebooks:
                raise InputError(f"vocab codebook_size is {sizes}; it must be one number, or {self.codebooks} of them")
            object.__setattr__(self, "codebook_size", sizes if len(set(sizes)) > 1 else sizes[0])
        for name in ("codebooks", "codebook_size", "max_frames", "text_size"):
            if np.min(getattr(self, name)) < 1:
                raise InputError(f"vocab {name} is {getattr(self, name)}; it must be at least 1")
        if self.extra_ids < 0:
            raise InputError(f"vocab extra_ids is {self.extra_ids}; it must be at least 0")

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """K of every codebook."""
        size = self.codebook_size
        return size if np.ndim(size) else (size,) * self.codebooks

    @property
    def largest_codebook(self) -> int:
        return max(self.codebook_sizes)

    @property
    def code_start(self) -> int:
        return TEXT_START + self.text_size

    @property
    def length_start(self) -> int:
        return self.code_start + sum(self.codebook_sizes)

    @property
    def size(self) -> int:
        """V, the number of ids."""
        return self.extra_start + self.extra_ids

    @property
    def extra_start(self) -> int:
        return self.length_start + self.max_frames

    @property
    def heads(self) -> int:
        """The number of legal sets."""
        return HEAD_CODE + self.codebooks + 1

    @property
    def head_code_or_end(self) -> int:
        return HEAD_CODE + self.codebooks

    @property
    def head_not_end(self) -> int:
        return self.heads

    @property
    def head_of_end(self) -> int:
        """That of codebook 0; those of the others follow."""
        return self.heads + 1

    @functools.cached_property
    def first(self) -> "Vocab":
        """The ids that the first stream predicts if a depth network predicts the others: text (one id, which it never
        predicts, if that is given), codebook 0, one length (which it never predicts)."""
        text = {"text_size": 1, "text_given": False} if self.text_given else {}
        return dataclasses.replace(
            self, codebooks=1, codebook_size=self.codebook_sizes[0], max_frames=1, extra_ids=0, **text
        )

    @property
    def text_apart(self) -> bool:
        """Whether predictions of text are computed apart, so that those of codes do not pay for them."""
        return self.text_size > TEXT_APART

    @functools.cached_property
    def without_text(self) -> "Vocab":
        """The ids that are predicted beside text: with one id of text if it is apart, else all."""
        return dataclasses.replace(self, text_size=1) if self.text_apart else self

    def code_ids(self, codes_TQ: np.ndarray) -> np.ndarray:
        """Codes [..., Q] -> ids [..., Q]. Raises InputError if a code is outside its codebook."""
        codes = np.asarray(codes_TQ)
        if codes.shape[-1] > self.codebooks:
            raise InputError(f"{codes.shape[-1]} codebooks were given; this vocabulary has {self.codebooks}")
        sizes_Q = np.array(self.codebook_sizes[: codes.shape[-1]])
        wrong = (codes < 0) | (codes >= sizes_Q)
        if wrong.any():
            bad, size = codes[wrong][0], np.broadcast_to(sizes_Q, codes.shape)[wrong][0]
            raise InputError(f"code {bad} is out of range; codes must lie in 0..{size - 1}")
        return codes.astype(np.int32) + self.code_offsets[: codes.shape[-1]]

    @functools.cached_property
    def code_offsets(self) -> np.ndarray:
        """First id of each codebook, [Q]."""
        return self.code_start + np.cumsum((0, *self.codebook_sizes[:-1]), dtype=np.int32)

    @functools.cached_property
    def legal_QK(self) -> np.ndarray:
        """[Q, K] bool, K the largest codebook: which codes each codebook has."""
        return np.arange(self.largest_codebook) < np.array(self.codebook_sizes)[:, None]

    def length_id(self, frames: int) -> int:
        if not 1 <= frames <= self.max_frames:
            raise InputError(f"a segment of {frames} frames is not possible; it must have 1..{self.max_frames}")
        return self.length_start + frames - 1

    @functools.cached_property
    def legal_text(self) -> np.ndarray:
        """[code_start] bool: which of the ids before the codes the legal set of text holds."""
        legal = np.arange(self.code_start) >= TEXT_START
        legal[[AUDIO, EOS]] = True
        return legal

    @functools.cached_property
    def legal_HV(self) -> np.ndarray:
        """[heads, V] bool: which ids each legal set holds, in full; `losses` works with the ranges."""
        legal_HV = np.zeros((self.heads, self.size), bool)
        legal_HV[HEAD_TEXT, : self.code_start] = self.legal_text
        legal_HV[HEAD_LENGTH, self.length_start : self.extra_start] = True
        for q, (start, size) in enumerate(zip(self.code_offsets, self.codebook_sizes, strict=True)):
            legal_HV[HEAD_CODE + q, start : start + size] = True
        legal_HV[self.head_code_or_end] = legal_HV[HEAD_CODE]
        legal_HV[self.head_code_or_end, END_AUDIO] = True
        return legal_HV
