"""Text to ids and back, by one vocabulary per model: UTF-8 bytes, so that no character is ever outside of it, or pieces
of a tokenizer (pieces.py).

And the one cleaning of text, which recordings get when they are prepared and requests when they are made, so that equal
words are equal tokens.
"""

import dataclasses
import unicodedata
from pathlib import Path
from typing import Protocol

import numpy as np

from audiolm_jax.config import key, validate
from audiolm_jax.errors import InputError
from audiolm_jax.serialization.vocab import BYTES, TEXT_START, TextSpec

FILE = "tokenizer.json"  # of pieces, in the workdir of a run

# Characters that are neither seen nor spoken: soft hyphen, zero-width space, word joiner, byte order mark, and the
# marks and brackets of writing direction. U+200C and U+200D stay: Persian, Indic scripts and emoji need them.
_UNSEEN = dict.fromkeys([0xAD, 0x200B, 0x200E, 0x200F, *range(0x202A, 0x202F), 0x2060, *range(0x2066, 0x206A), 0xFEFF])


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The text vocabulary (section `text` of the configuration)."""

    vocabulary: str = key("bytes", "UTF-8 bytes, or pieces of a tokenizer.", among=("bytes", "pieces"))
    path: str = key(
        "", "pieces: a tokenizer.json; empty: one that `audiolm prepare` trains on the texts of the corpus."
    )
    size: int = key(0, "pieces without a path: how many, the 256 bytes included.", at_least=0)
    given: bool = key(
        False,
        "Text is never predicted (data.text_weight is 0): the output matrix beside a depth network has no columns for "
        "it.",
    )

    def __post_init__(self) -> None:
        validate(self, "text")
        pieces = self.vocabulary == "pieces"
        if not pieces and (self.path or self.size):
            said = f"text.path={self.path}" if self.path else f"text.size={self.size}"
            raise InputError(f"{said} needs text.vocabulary=pieces, not {self.vocabulary}")
        if pieces and bool(self.path) == bool(self.size):
            raise InputError(
                f"text.vocabulary=pieces needs either text.path, a tokenizer.json, or text.size, the number of pieces "
                f"to train; they are {self.path!r} and {self.size}"
            )
        if pieces and not self.path and self.size <= BYTES:
            raise InputError(f"text.size={self.size} must be above {BYTES}: every byte is a piece")


class Texts(Protocol):
    """A text vocabulary."""

    spec: TextSpec
    size: int  # number of ids
    metadata: dict[str, str]  # of a file exported from a run

    def encode(self, text: str) -> np.ndarray:
        """Text -> int32 ids [L], from TEXT_START on. Raises InputError for a text that it cannot express."""

    def decode(self, ids: np.ndarray) -> str:
        """Ids [L] -> text. Raises InputError for ids that are no text."""

    def keep(self, workdir: Path) -> None:
        """Writes the file that a run needs beside its checkpoints, if there is one."""


def clean(text: str) -> str:
    """The text as models see it: composed (Unicode NFC), without unseen characters, one space where there were line
    breaks, tabs or other spaces, none around it. Cleaning a clean text changes nothing."""
    return " ".join(unicodedata.normalize("NFC", text.translate(_UNSEEN)).split())


def control(text: str) -> bool:
    """Whether a clean text holds control characters, which no text of a recording may."""
    return any(ord(character) < 32 or ord(character) == 127 for character in text)


def encode(text: str) -> np.ndarray:
    """Text -> int32 ids [L], one per UTF-8 byte. Raises InputError for text that is not valid Unicode."""
    try:
        data = text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"text {text!a} is not valid Unicode at character {error.start}") from None
    return np.frombuffer(data, np.uint8).astype(np.int32) + TEXT_START


def decode(ids: np.ndarray) -> str:
    """Ids [L] -> text. Bytes that are not UTF-8 (a sampled text may hold some) become U+FFFD."""
    return check(ids, BYTES).astype(np.uint8).tobytes().decode("utf-8", errors="replace")


def check(ids: np.ndarray, size: int) -> np.ndarray:
    """Text ids [L] -> numbers from 0 below `size`. Raises InputError for other ids."""
    ids = np.asarray(ids)
    if ids.size and (ids.min() < TEXT_START or ids.max() >= TEXT_START + size):
        raise InputError(f"ids {ids.min()}..{ids.max()} hold ids that are not text")
    return ids - TEXT_START


class Bytes:
    """The text vocabulary of UTF-8 bytes."""

    spec, size, metadata = TextSpec(), BYTES, {}
    encode, decode = staticmethod(encode), staticmethod(decode)

    def keep(self, workdir: Path) -> None:
        pass


UTF8 = Bytes()
