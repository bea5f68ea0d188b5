"""Text to ids and back: UTF-8 bytes, so no character is ever outside the vocabulary."""

import numpy as np

from audiolm_jax.errors import InputError
from audiolm_jax.serialization.vocab import BYTES, TEXT_START


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
