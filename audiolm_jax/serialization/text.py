"""Text to ids and back: UTF-8 bytes, so no character is ever outside the vocabulary.

And the one cleaning of text, which recordings get when they are prepared and requests when they are made, so that equal
words are equal tokens.
"""

import unicodedata

import numpy as np

from audiolm_jax.errors import InputError
from audiolm_jax.serialization.vocab import BYTES, TEXT_START

# Characters that are neither seen nor spoken: soft hyphen, zero-width space, word joiner, byte order mark, and the
# marks and brackets of writing direction. U+200C and U+200D stay: Persian, Indic scripts and emoji need them.
_UNSEEN = dict.fromkeys([0xAD, 0x200B, 0x200E, 0x200F, *range(0x202A, 0x202F), 0x2060, *range(0x2066, 0x206A), 0xFEFF])


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
    ids = np.asarray(ids)
    if ids.size and (ids.min() < TEXT_START or ids.max() >= TEXT_START + BYTES):
        raise InputError(f"ids {ids.min()}..{ids.max()} hold ids that are not text")
    return (ids - TEXT_START).astype(np.uint8).tobytes().decode("utf-8", errors="replace")
