"""Section `data` of the configuration, and an example of a token data set as a document with its vocabulary."""

import dataclasses
import string

import numpy as np

from audiolm_jax.errors import InputError
from audiolm_jax.serialization import text as texts
from audiolm_jax.serialization.documents import Document
from audiolm_jax.serialization.vocab import Vocab

FIELDS = ("text", "speaker", "key")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Section `data` of the configuration."""

    # L, positions in one row of a batch: the context of the model in training.
    sequence_length: int = 1024
    # B, rows in one batch, of all processes together.
    batch_size: int = 16
    # Parts of a batch that are packed apart: a multiple of the processes lets each pack only its own rows.
    lanes: int = 1
    # What the text segment says; {text}, {speaker} and {key} are filled in. Empty: audio without text.
    template: str = "{text}"
    # Weight of predicting text (and where audio begins) in the loss; a code has weight 1.
    text_weight: float = 0.0
    # Probability with which a training view leaves out the text: the unconditional model that guidance needs.
    drop_text: float = 0.1
    # Q, leading codebooks used; 0 takes all that the dataset has.
    codebooks: int = 0
    # Longest audio of a document in frames, and the number of length ids in the vocabulary.
    max_frames: int = 750
    # Several documents in one row; False gives every document a row of its own.
    packing: bool = True
    # Leave out documents longer than a row or than max_frames, and say how many; False refuses to train with them.
    drop_long: bool = False
    # Another order of the documents in every epoch; False keeps the order of the dataset.
    shuffle: bool = True
    # Processes that make the batches of a lane; 0 makes them in a thread of the training process.
    num_workers: int = 0
    # Batches made ahead of the training step.
    prefetch: int = 4

    def __post_init__(self):
        for key in ("sequence_length", "batch_size", "lanes", "max_frames", "prefetch"):
            if getattr(self, key) < 1:
                raise InputError(f"data.{key} = {getattr(self, key)} must be 1 or more")
        if self.batch_size % self.lanes:
            raise InputError(f"data.lanes = {self.lanes} does not divide data.batch_size = {self.batch_size}")
        for key in ("codebooks", "num_workers", "text_weight"):
            if getattr(self, key) < 0:
                raise InputError(f"data.{key} = {getattr(self, key)} must not be negative")
        if not 0 <= self.drop_text <= 1:
            raise InputError(f"data.drop_text = {self.drop_text} must be between 0 and 1")
        try:
            fields = [field for _, field, _, _ in string.Formatter().parse(self.template) if field is not None]
        except ValueError as error:
            raise InputError(f"data.template = {self.template!r} is not a format string ({error})") from None
        for field in fields:
            if field not in FIELDS:
                raise InputError(
                    f"data.template = {self.template!r} names {{{field}}}; it may name "
                    + ", ".join(f"{{{name}}}" for name in FIELDS)
                )


def make_vocab(metadata: dict, config: DataConfig) -> Vocab:
    """The vocabulary for a token dataset (`tokens.info`) and the leading codebooks that `config` uses."""
    available = metadata["codebooks"]
    if config.codebooks > available:
        raise InputError(f"data.codebooks = {config.codebooks}, but the token dataset has {available} codebooks")
    return Vocab(config.codebooks or available, metadata["codebook_size"], config.max_frames)


def prompt_text(config: DataConfig, text: str, speaker: str = "", key: str = "") -> str:
    """The text segment for these words by this speaker, as it was in training."""
    return config.template.format(text=text, speaker=speaker, key=key)


def document(example: dict, config: DataConfig, vocab: Vocab) -> Document:
    """An example of a token dataset as a document: its text (if any), then the first Q codebooks of its audio."""
    codes_TQ = np.asarray(example["codes"])[:, : vocab.codebooks].astype(np.int32)
    words = prompt_text(config, example["text"], example["speaker"], example["key"])
    audio = (("audio", codes_TQ),)
    return (("text", texts.encode(words)), *audio) if words else audio
