"""An example of a token data set as a document with its vocabulary."""

import numpy as np

from audiolm_jax.data.config import DataConfig
from audiolm_jax.errors import InputError
from audiolm_jax.serialization import text as texts
from audiolm_jax.serialization.documents import Document
from audiolm_jax.serialization.vocab import BYTES, Vocab


def make_vocab(metadata: dict, config: DataConfig, text_size: int = BYTES, text_given: bool = False) -> Vocab:
    """The vocabulary for a token dataset (`tokens.info`) and the leading codebooks that `config` uses."""
    if text_given and config.text_weight:
        raise InputError(f"data.text_weight = {config.text_weight}: text.given says that text is never predicted")
    available = metadata["codebooks"]
    if config.codebooks > available:
        raise InputError(f"data.codebooks = {config.codebooks}, but the token dataset has {available} codebooks")
    sizes = config.codebooks or available, metadata["codebook_size"], config.max_frames
    return Vocab(*sizes, text_size=text_size, text_given=text_given)


def prompt_text(config: DataConfig, text: str, speaker: str = "", key: str = "") -> str:
    """The text segment for these words by this speaker, as it was in training. Both are cleaned (`text.clean`)."""
    return config.template.format(text=texts.clean(text), speaker=texts.clean(speaker) or config.speaker, key=key)


def document(example: dict, config: DataConfig, vocab: Vocab, text: texts.Texts = texts.UTF8) -> Document:
    """An example of a token dataset as a document: its text (if any), then the first Q codebooks of its audio."""
    codes_TQ = np.asarray(example["codes"])[:, : vocab.codebooks].astype(np.int32)
    words = prompt_text(config, example["text"], example["speaker"], example["key"])
    audio = (("audio", codes_TQ),)
    return (("text", text.encode(words)), *audio) if words else audio
