"""Sections `tokens` and `data` of the configuration."""

import dataclasses
import re
import string

from audiolm_jax.config import key, validate
from audiolm_jax.errors import InputError

FIELDS = ("text", "speaker", "key")  # of a recording, for data.template


@dataclasses.dataclass(frozen=True)
class TokensConfig:
    """The token data set: recordings as codes."""

    name: str = key("audio_tokens", "Name of the data set, which tfds.data_source takes.")
    shard_utterances: int = key(
        256,
        "Recordings in one shard: the most that is lost when writing is interrupted, and the unit of parallel reading.",
        at_least=1,
    )
    batch_seconds: float = key(
        32.0, "Seconds of audio encoded at once; recordings are padded to 2, 4, 8, ... seconds.", above=0
    )
    workers: int = key(2, "Threads that load and resample recordings while the codec encodes.", at_least=1)

    def __post_init__(self) -> None:
        validate(self, "tokens")
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name):
            raise InputError(f"tokens.name={self.name} must be lower case letters, digits and underscores")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Tokens to training batches."""

    sequence_length: int = key(
        1024, "Positions in one row of a batch (L): the context of the model in training.", at_least=1
    )
    batch_size: int = key(16, "Rows in one batch (B), of all processes and devices together.", at_least=1)
    lanes: int = key(
        1,
        "Parts of a batch that are packed separately; a divisor of data.batch_size. With a multiple of the number of "
        "processes, each process packs only its own rows. Changing it changes the data order; changing the number of "
        "processes does not.",
        at_least=1,
    )
    template: str = key(
        "{text}", "The text segment; {text}, {speaker} and {key} are filled in. Empty: audio without text."
    )
    speaker: str = key("", "What {speaker} is for a recording or a request that names none.")
    text_weight: float = key(
        0.0, "Weight of predicting text (and where audio begins) in the loss; a code has weight 1.", at_least=0
    )
    drop_text: float = key(
        0.1,
        "Probability of leaving out the text in training: the unconditional model that guidance needs.",
        at_least=0,
        at_most=1,
    )
    codebooks: int = key(0, "Leading codebooks used (Q); 0: all of the data set.", at_least=0)
    max_frames: int = key(750, "Frames of the longest audio segment, and length ids in the vocabulary.", at_least=1)
    packing: bool = key(True, "Pack several documents into one row; False: one document per row.")
    drop_long: bool = key(
        False,
        "Leave out documents longer than a row or than data.max_frames, and log how many; False: refuse to train.",
    )
    shuffle: bool = key(True, "Shuffle the documents anew in every epoch; False: the order of the data set.")
    num_workers: int = key(0, "Worker processes that make batches, per lane; 0: a thread.", at_least=0)
    prefetch: int = key(4, "Batches made ahead of the training step.", at_least=1)

    def __post_init__(self) -> None:
        validate(self, "data")
        if self.batch_size % self.lanes:
            raise InputError(f"data.lanes={self.lanes} must divide data.batch_size={self.batch_size}")
        names = ", ".join(f"{{{name}}}" for name in FIELDS)
        try:
            fields = {field for _, field, _, _ in string.Formatter().parse(self.template)} - {None}
        except ValueError as error:
            raise InputError(f"data.template={self.template} must be a format string of {names} ({error})") from None
        for field in fields - set(FIELDS):
            raise InputError(f"data.template={self.template} names {{{field}}}; it may name {names}")
