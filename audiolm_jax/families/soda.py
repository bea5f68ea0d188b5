"""SODA (Scaling Open Discrete Audio, soda-audio.github.io): reads and writes its published checkpoints without torch.

The layout of `soda-research/soda-135m-base`, `-600m-base`, `-4b-base`: `config.json` (a Qwen3), `model.safetensors` (or
shards), `tokenizer.json`. The Transformer of model/ with Qwen3's block, the order flat, the framing `delimited`, and
the codes of 8 codebooks of Mimi in one vocabulary with text: text, BOS and EOS among it, marks around text and audio,
then code c of codebook q at the first code + q * 2048 + c. The tokenizer spells that code as the character U+E000 +
q * 2048 + c, and decides by its names which ids are the marks (experiments/audio of marin-community/marin).

The codec is no part of these checkpoints: it is looked for in a folder `codec` beside config.json (with config.json and
model.safetensors of kyutai/mimi), and downloaded from the repository kyutai/mimi where there is none.

    generator = audiolm_jax.load("soda-research/soda-600m-base@main")
    result = generator.generate("Good morning.", temperature=0.9)

    WORKDIR/checkpoints/0       the model          WORKDIR/tokenizer.json    of its text
    WORKDIR/published.json      its config.json    WORKDIR/codec             a path that --config.codec.path takes
"""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from audiolm_jax import codecs
from audiolm_jax.data.config import DataConfig
from audiolm_jax.errors import InputError
from audiolm_jax.families import blocks
from audiolm_jax.families import table as tables
from audiolm_jax.families import workdir as in_workdir
from audiolm_jax.families.table import Entry, llama_block, rmsnorm
from audiolm_jax.families.workdir import CODEC, PUBLISHED_CONFIG
from audiolm_jax.hub import files as huggingface
from audiolm_jax.hub.weights import Weights
from audiolm_jax.model.config import ModelConfig, table_rows
from audiolm_jax.model.spec import Spec
from audiolm_jax.model.transformer import Transformer
from audiolm_jax.sampling import SamplingConfig
from audiolm_jax.sampling.generator import Generator
from audiolm_jax.serialization import SerializationConfig, pieces
from audiolm_jax.serialization.framing import DELIMITED
from audiolm_jax.serialization.pieces import Pieces
from audiolm_jax.serialization.text import FILE
from audiolm_jax.serialization.vocab import AUDIO, BOS, END_AUDIO, EOS, TEXT_START, Vocab

WHAT = "SODA"  # begins a message
TYPES, TUNED, FILES = ("qwen3",), ("qwen3",), (FILE,)
MIMI = "mimi"
REPOSITORY = "kyutai/mimi@main"
KEPT = (PUBLISHED_CONFIG, CODEC)
MARKS = {BOS: "<|begin_of_text|>", EOS: "<|end_of_text|>", AUDIO: "<|audio_start|>", END_AUDIO: "<|audio_end|>"}
AROUND_TEXT = ("<|text_start|>", "<|text_end|>")
FIRST_CODE = chr(0xE000)
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def table(c: ModelConfig, vocab: Vocab, text: Pieces) -> list[Entry]:
    """Every parameter with the tensors that it is read from and written to. Rows of ours that SODA lacks are zero, and
    in no legal set."""
    D, codes = c.width, vocab.codebooks * vocab.codebook_size
    ours = [*marks(text), *(TEXT_START + np.arange(text.size)), *(vocab.code_start + np.arange(codes))]
    theirs = [*marks(text).values(), *text.ids, *(text.limit + np.arange(codes))]
    shape, rows = (text.limit + codes, D), table_rows(vocab.size)

    def pack(tensors: list[np.ndarray]) -> np.ndarray:
        table_VD = np.zeros((rows, D), np.float32)
        table_VD[ours] = tensors[0][theirs]
        return table_VD

    def unpack(table_VD: np.ndarray) -> list[np.ndarray]:
        tensor = np.zeros(shape, np.float32)
        tensor[theirs] = table_VD[ours]
        return [tensor]

    entries = [
        Entry("embedding_VD", [EMBEDDING], [shape], pack, unpack),
        *llama_block("layers", "model.layers.{}", c),
        rmsnorm("norm", "model.norm", D),
    ]
    if not c.tied:
        entries.append(Entry("unembedding_DV", [HEAD], [shape], lambda x: pack(x).T, lambda x: unpack(x.T)))
    return entries


def marks(text: Pieces) -> dict[int, int]:
    """Ids of ours that are in no text -> the tokenizer's."""
    return {ours: text.tokenizer.token_to_id(name) for ours, name in MARKS.items()}


@dataclasses.dataclass(frozen=True)
class Published:
    """A checkpoint: its config.json, the model with its description, the codec and its folder, the text vocabulary."""

    config: dict
    spec: Spec
    model: Transformer
    codec: Any
    speech: Path
    text: Pieces

    def generator(self, sampling: SamplingConfig | None = None) -> Generator:
        """Build the Generator."""
        context = self.config["max_position_embeddings"]
        generator = Generator(self.model, self.spec, self.codec, sampling, context)
        generator.text = self.text
        return generator


def read(folder: Path, dtype: str = "auto", config: dict | None = None) -> Published:
    """A checkpoint. dtype: as `model.dtype`. config: its config.json, if it was read already. Raises one InputError
    that names everything missing, unexpected or of a wrong shape."""
    config, weights = huggingface.read_folder(folder, TYPES, WHAT, config)
    text, speech = pieces_of(folder), codec_folder(folder)
    size = huggingface.read_config(speech / huggingface.CONFIG, (MIMI,), WHAT).get("codebook_size", 2048)
    spec = described(config, size, text)
    codec = codecs.load(MIMI, speech, spec.vocab.codebooks)
    weights.check_layers(num_hidden_layers=spec.model.layers)
    if spec.model.tied:
        _drop_head(weights)
    sizes = dataclasses.replace(spec.model, dtype=dtype)
    model = tables.fill(sizes, spec.vocab, table(sizes, spec.vocab, text), weights)
    weights.finish()
    return Published(config, spec, model, codec, speech, text)


def _drop_head(weights: Weights) -> None:
    """Leaves out the copy of the table that some files of tied models hold. Raises InputError for another matrix."""
    head = weights.tensors.pop(HEAD, None)
    if head is not None and not np.array_equal(head, weights.tensors.get(EMBEDDING)):
        raise InputError(
            f"{WHAT}: {weights.path} has a {HEAD} of its own, but {huggingface.CONFIG} says tie_word_embeddings=true; "
            "one of the two belongs to another model"
        )


def pieces_of(folder: Path) -> Pieces:
    """The text vocabulary of a folder. Raises InputError for a tokenizer that is none of SODA's."""
    if not (folder / FILE).is_file():
        raise InputError(f"{WHAT}: {folder} lacks {FILE}")
    every = pieces.read(folder / FILE, WHAT)
    numbers = {name: every.tokenizer.token_to_id(name) for name in (*MARKS.values(), *AROUND_TEXT)}
    first = every.tokenizer.encode(FIRST_CODE, add_special_tokens=False).ids
    missing = [name for name, number in numbers.items() if number is None]
    if len(first) != 1:
        missing.append(f"a piece for the first code, U+{ord(FIRST_CODE):X}")
    if missing:
        raise InputError(f"{WHAT}: {folder / FILE} has no {missing[0]}; it belongs to another model")
    structural = tuple(sorted(numbers[name] for name in MARKS.values()))
    found = Pieces(every.json, structural, first[0])
    around = [numbers[name] for name in AROUND_TEXT]
    if max(structural) >= found.limit or found.ids[-len(around) :].tolist() != around:
        raise InputError(
            f"{WHAT}: {folder / FILE} has {AROUND_TEXT[0]}, {AROUND_TEXT[1]} at {around} and codes from {found.limit} "
            "on; between these are the marks of audio and nothing else"
        )
    return found


def codec_folder(folder: Path) -> Path:
    """The folder of the codec of a checkpoint. Raises InputError if it is not there and cannot be downloaded."""
    inside = folder / CODEC
    if inside.is_dir():
        return inside
    try:
        return huggingface.folder(REPOSITORY, WHAT, lambda _: ((), {}))[0]
    except InputError as error:
        raise InputError(
            f"{WHAT}: the codec is no part of the checkpoint; put {huggingface.CONFIG} and {huggingface.WEIGHTS} of "
            f"{REPOSITORY.partition('@')[0]} into {inside} ({error})"
        ) from None


def described(config: dict, codebook_size: int, text: Pieces) -> Spec:
    """The Spec of a config.json. Raises InputError for what does not fit."""
    blocks.numbers(config, "", (*blocks.SIZES, "vocab_size", "max_position_embeddings"), 1, WHAT)
    rows, known = config["vocab_size"], text.tokenizer.get_vocab_size()
    codebooks, rest = divmod(rows - text.limit, codebook_size)
    if rows != known or rest or codebooks < 1:
        raise InputError(
            f"{WHAT}: {huggingface.CONFIG} has vocab_size={rows}, {FILE} {known} pieces with codes from {text.limit} "
            f"on and the codec {codebook_size} codes in a codebook; one of the three belongs to another model"
        )
    model = ModelConfig(tied=bool(config.get("tie_word_embeddings", False)), **blocks.qwen3(config, "", WHAT))
    frames = max(1, config["max_position_embeddings"] // codebooks)
    vocab = Vocab(codebooks, codebook_size, frames, text_size=text.size)
    # It is sampled without guidance, so its training leaves no text out.
    data = DataConfig(max_frames=frames, sequence_length=config["max_position_embeddings"], drop_text=0.0)
    order = SerializationConfig(strategy="flat")
    return Spec(model, vocab, order, DELIMITED.name, data, text=text.spec)


def save(workdir: Path, p: Published) -> None:
    """Writes a checkpoint as the workdir of a run."""
    copy_codec(p.speech, workdir / CODEC)
    p.text.keep(workdir)
    in_workdir.save(workdir, p, codebooks=p.codec.codebooks)


def of_run(workdir: Path, model: Transformer, spec: Spec) -> Published:
    """The weights of a run that began with `save`, with its codec and tokenizer. Raises InputError for other ones than
    those of the training."""
    config = huggingface.read_config(workdir / PUBLISHED_CONFIG, TYPES, WHAT)
    codec = in_workdir.codec_of(workdir, spec)
    return Published(config, spec, model, codec, workdir / spec.codec.path, pieces.of_model(spec.text, workdir))


def write(folder: str | Path, published: Published) -> None:
    """Saves a checkpoint as it was read, so that `transformers` opens it, with the codec in a folder of its own."""
    folder, p = Path(folder), published
    # Older files name the type of the weights torch_dtype; `transformers` opens them with it.
    config = {name: value for name, value in p.config.items() if name != "torch_dtype"} | {"dtype": "float32"}
    entries = table(p.model.config, p.spec.vocab, p.text)
    huggingface.write(folder, config, tables.tensors_of(p.model, entries))
    p.text.keep(folder)
    copy_codec(p.speech, folder / CODEC)


def copy_codec(source: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in (huggingface.CONFIG, huggingface.WEIGHTS):
        shutil.copyfile(source / name, folder / name)
