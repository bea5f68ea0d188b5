"""Text as pieces of a tokenizer.json (the library `tokenizers`): published ones of any kind and size, and byte-level
BPE trained on the texts of a corpus.

Piece n of those that are text has the id TEXT_START + n, in the order of the tokenizer's ids. Some of its ids may be no
text: those that mean what ids of the model mean (`structural`), and those of codes (from `limit` on).
"""

import dataclasses
import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from audiolm_jax import files
from audiolm_jax.errors import InputError, shortened
from audiolm_jax.serialization import text as texts
from audiolm_jax.serialization.text import UTF8, TextConfig, Texts
from audiolm_jax.serialization.vocab import TEXT_START, TextSpec

TRAINED = "pieces-{}.json"  # in the folder of the token data set
EXPORTED = "tokenizer"  # in the metadata of a file exported from a run


@dataclasses.dataclass(frozen=True)
class Pieces:
    """The text vocabulary of a tokenizer.json, whose content is `json`. `structural`, `limit`: as of `TextSpec`."""

    json: str
    structural: tuple[int, ...] = ()
    limit: int = 0

    def __repr__(self) -> str:
        return f"Pieces({self.spec.fingerprint[:16]})"

    def __getstate__(self) -> dict:  # for processes that make batches
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The Tokenizer of the library, without what a training script saved of its batches."""
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(self.json)
        tokenizer.encode("a")  # tokens that are named and not there show here
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer

    @functools.cached_property
    def spec(self) -> TextSpec:
        digest = hashlib.sha256(self.json.encode()).hexdigest()
        return TextSpec("pieces", texts.FILE, digest, self.structural, self.limit)

    @functools.cached_property
    def _count(self) -> int:
        return max(self.tokenizer.get_vocab().values()) + 1

    @functools.cached_property
    def ids(self) -> np.ndarray:
        """The ids of the tokenizer that are text, [size] in rising order."""
        return np.setdiff1d(np.arange(self.limit or self._count), self.structural)

    @property
    def size(self) -> int:
        return len(self.ids)

    @property
    def metadata(self) -> dict[str, str]:
        return {EXPORTED: self.json}

    @functools.cached_property
    def _number(self) -> np.ndarray:
        """Id of the tokenizer -> number of the piece, -1 for what is no text."""
        number = np.full(max(self._count, self.limit), -1, np.int32)
        number[self.ids] = np.arange(self.size)
        return number

    def encode(self, text: str) -> np.ndarray:
        """Text -> int32 ids [L].

        Raises InputError for a text with a character that no piece has, or one that is no text of the model's.
        """
        with files.reading(f"text {shortened(text, 60)!r}", f"pieces of {texts.FILE}", remedy="give another text"):
            found = self.tokenizer.encode(text, add_special_tokens=False)
        known = [False] * len(text)
        unknown = getattr(self.tokenizer.model, "unk_token", None)
        for piece, (start, end) in zip(found.tokens, found.offsets, strict=True):
            known[start:end] = [piece != unknown] * (end - start)
        lost = [letter for letter, has in zip(text, known, strict=True) if not (has or letter.isspace())]
        if lost:
            raise InputError(f"the text {shortened(text, 60)!r} has {lost[0]!r}, for which {texts.FILE} has no piece")
        numbers = self._number[np.array(found.ids, np.int32)]
        if (numbers < 0).any():
            name = found.tokens[int(np.argmax(numbers < 0))]
            raise InputError(f"the text {shortened(text, 60)!r} has {name!r}, which is no text to this model")
        return numbers + TEXT_START

    def decode(self, ids: np.ndarray) -> str:
        """Ids [L] -> text. Raises InputError for ids that are no text."""
        numbers = texts.check(ids, self.size)
        return self.tokenizer.decode(self.ids[numbers].tolist(), skip_special_tokens=False)

    def keep(self, workdir: str | Path) -> None:
        """Writes the file into the workdir of a run. Raises InputError if there is another one."""
        path = files.place(workdir) / texts.FILE
        if path.exists() and path.read_bytes().decode("utf-8", "replace") != self.json:
            raise InputError(f"{path}: is another tokenizer than the one of this run; give another workdir")
        with files.writing(path):
            files.write_text(path, self.json)


def read(path: Path, what: str, structural: tuple[int, ...] = (), limit: int = 0) -> Pieces:
    """The pieces of a tokenizer.json. what: the key that named it. Raises InputError if it cannot be read."""
    path = files.place(path)
    with files.reading(path, "a tokenizer", what, "a tokenizer.json of the library tokenizers is needed"):
        pieces = Pieces(path.read_bytes().decode("utf-8"), structural, limit)
        pieces.tokenizer  # noqa: B018  (read once here, so that defects show)
    return pieces


def of_model(spec: TextSpec, source: Path) -> Texts:
    """The text vocabulary of a model. source: the workdir of its run, or a file exported from that.

    Raises InputError if its tokenizer is missing there, or is another one.
    """
    if spec.vocabulary == "bytes":
        return UTF8
    where = source if source.is_file() else source / spec.path
    if source.is_file():
        pieces = Pieces(files.safetensors_metadata(source).get(EXPORTED, ""), spec.structural, spec.limit)
    else:
        pieces = read(where, "the text of the model", spec.structural, spec.limit)
    if pieces.spec.fingerprint != spec.fingerprint:
        raise InputError(
            f"{where}: has another tokenizer, sha256 {pieces.spec.fingerprint[:12]}, than the one that the model was "
            f"trained with, {spec.fingerprint[:12]}"
        )
    return pieces


def of_config(config: TextConfig, data: Path) -> Texts:
    """The text vocabulary of a configuration. data: the folder of `audiolm prepare`, which trained the pieces.

    Raises InputError if its file is missing or cannot be read.
    """
    if config.vocabulary == "bytes":
        return UTF8
    return read(Path(config.path), "text.path") if config.path else trained(data, config.size)


def size_of(config: TextConfig) -> int:
    """The number of ids of the text vocabulary of a configuration, whose data need not be there yet."""
    return config.size or of_config(config, Path()).size


def trained(data: Path, size: int) -> Pieces:
    """The pieces that `audiolm prepare` trained. Raises InputError if it did not."""
    path = data / "tokens" / TRAINED.format(size)
    if not path.is_file():
        raise InputError(f"text.size={size}: there is no {path}; run `audiolm prepare` with text.size={size} first")
    return read(path, f"text.size={size}")


def train(words: Iterable[str], data: Path, size: int) -> None:
    """Trains byte-level BPE (GPT-2's) with `size` pieces on texts, and keeps it beside the tokens; what was trained
    before stays.

    Raises InputError if the texts have too few different words for as many pieces.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    path = data / "tokens" / TRAINED.format(size)
    if path.is_file():
        return
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(words, trainer)
    found = tokenizer.get_vocab_size()
    if found != size:
        raise InputError(f"text.size={size}: the texts of the corpus give {found} pieces; ask for at most {found}")
    with files.writing(path):
        files.write_text(path, tokenizer.to_str())
