"""Qwen3-TTS at 12 Hz (arXiv 2601.15621): reads and writes its published checkpoints without torch.

The layout of `Qwen/Qwen3-TTS-12Hz-0.6B-Base`, `-1.7B-CustomVoice`, `-1.7B-VoiceDesign` and their siblings:
`config.json`, `model.safetensors` (or shards), the tokenizer as vocab.json, merges.txt and tokenizer_config.json (or a
tokenizer.json), the codec in `speech_tokenizer`. The talker is the Transformer of model/ with Qwen3's block, its code
predictor a depth network over tables of the talker's width, and text has a table and an MLP of its own (framing
`beside`). The three equal rows of positions of its multimodal RoPE are those of plain rotary positions.

    generator = audiolm_jax.load("Qwen/Qwen3-TTS-12Hz-1.7B-CustomVoice@main")
    result = generator.generate("Good morning.", speakers="ryan", languages="english")
    like = base.generate("Good morning.", audio=(samples, 24000), prompt_texts="What is said in it.")

The speaker encoder of the base models is kept and written again, but not run: cloning is by the codes of a recording
and its transcript, where the reference also adds one vector of its voice to the prompt.

    WORKDIR/checkpoints/0       the talker              WORKDIR/codec             a path that --config.codec.path takes
    WORKDIR/published.json      its config.json         WORKDIR/tokenizer.json    of its text
    WORKDIR/published           what else it had        WORKDIR/speaker_encoder.safetensors     of a base model
"""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from audiolm_jax import codecs, files
from audiolm_jax.data.config import DataConfig
from audiolm_jax.errors import InputError
from audiolm_jax.families import blocks, bpe
from audiolm_jax.families import table as tables
from audiolm_jax.families import workdir as in_workdir
from audiolm_jax.families.qwen3_tts_prompt import MARKS, TEXT_MARKS, WHAT, Prompts
from audiolm_jax.families.table import Entry, llama_block, plain, rmsnorm
from audiolm_jax.families.workdir import CODEC, PUBLISHED_CONFIG
from audiolm_jax.hub import files as huggingface
from audiolm_jax.model.config import DepthConfig, ModelConfig, table_rows
from audiolm_jax.model.spec import Spec
from audiolm_jax.model.transformer import Transformer
from audiolm_jax.sampling import SamplingConfig
from audiolm_jax.sampling.generator import Generator
from audiolm_jax.serialization import SerializationConfig, pieces
from audiolm_jax.serialization.text import FILE
from audiolm_jax.serialization.vocab import END_AUDIO, TEXT_START, Vocab

TYPES = TUNED = ("qwen3_tts",)
SPEECH = "speech_tokenizer"
FILES = (*bpe.NAMES, f"{SPEECH}/{huggingface.CONFIG}", f"{SPEECH}/{huggingface.WEIGHTS}")
FRAMING = "beside"
OTHERS, SPEAKER = "published", "speaker_encoder"  # in a workdir
LOOSE = (*bpe.NAMES, FILE, "generation_config.json", "preprocessor_config.json")
KEPT = (PUBLISHED_CONFIG, CODEC, OTHERS, f"{SPEAKER}.safetensors")
MAX_FRAMES = 4096


def table(c: ModelConfig, vocab: Vocab, end: int) -> list[Entry]:
    """Every parameter with the tensors that it is read from and written to. end: codec_eos_token_id."""
    D, Q, K, d = c.width, vocab.codebooks, vocab.codebook_size, c.depth.width
    code_ids = vocab.code_start + np.arange(Q * K)
    control = TEXT_START + np.arange(vocab.text_size)
    control[end - K] = END_AUDIO
    talker, predictor = "talker.model", "talker.code_predictor"

    def rows_of(ids: np.ndarray, count: int, arrays: list[np.ndarray]) -> np.ndarray:
        out = np.zeros((count, arrays[0].shape[1]), np.float32)
        out[ids] = np.concatenate([arrays[0][:K], *arrays[1:]])
        out[control] = arrays[0][K:]
        return out

    def pack_tables(arrays: list[np.ndarray]) -> np.ndarray:
        return rows_of(code_ids, table_rows(vocab.size), arrays)

    def unpack_tables(table_VD: np.ndarray) -> list[np.ndarray]:
        books = table_VD[code_ids].reshape(Q, K, D)
        return [np.concatenate([books[0], table_VD[control]]), *books[1:]]

    def pack_head(arrays: list[np.ndarray]) -> np.ndarray:
        return rows_of(code_ids[:K], table_rows(vocab.first.size), arrays).T

    def unpack_head(head_DV: np.ndarray) -> list[np.ndarray]:
        return [np.concatenate([head_DV.T[code_ids[:K]], head_DV.T[control]])]

    embeddings = [f"{talker}.codec_embedding.weight"]
    embeddings += [f"{predictor}.model.codec_embedding.{q}.weight" for q in range(Q - 1)]
    heads = [f"{predictor}.lm_head.{q}.weight" for q in range(Q - 1)]
    V, T, W = K + vocab.text_size, c.text_rows, c.text_width
    projection = "talker.text_projection.linear_fc"
    entries = [
        Entry("embedding_VD", embeddings, [(V, D)] + [(K, D)] * (Q - 1), pack_tables, unpack_tables),
        Entry("text/embedding_VW", [f"{talker}.text_embedding.weight"], [(T, W)], lambda x: x[0], lambda x: [x]),
        plain("text/up_WF", f"{projection}1.weight", W, W),
        plain("text/up_bias_F", f"{projection}1.bias", W),
        plain("text/down_FD", f"{projection}2.weight", D, W),
        plain("text/down_bias_D", f"{projection}2.bias", D),
        *llama_block("layers", f"{talker}.layers.{{}}", c),
        rmsnorm("norm", f"{talker}.norm", D),
        Entry("unembedding_DV", ["talker.codec_head.weight"], [(V, D)], pack_head, unpack_head),
        *llama_block("depth/layers", f"{predictor}.model.layers.{{}}", c.depth.block),
        rmsnorm("depth/norm", f"{predictor}.model.norm", d),
        Entry(
            "depth/output_CdK",
            heads,
            [(K, d)] * (Q - 1),
            lambda x: np.stack([head.T for head in x]),
            lambda x: [head.T for head in x],
        ),
    ]
    if c.depth.projection != "none":
        name = f"{predictor}.small_to_mtp_projection"
        entries += [
            Entry("depth/project_PDd", [f"{name}.weight"], [(d, D)], lambda x: x[0].T[None], lambda x: [x[0].T]),
            plain("depth/project_bias_d", f"{name}.bias", d),
        ]
    return entries


@dataclasses.dataclass(frozen=True)
class Published:
    """A checkpoint: its config.json, the model with its description, codec, text vocabulary, the tensors of the speaker
    encoder, and the folder with its other files."""

    config: dict
    spec: Spec
    model: Transformer
    codec: Any
    text: pieces.Pieces
    speaker: dict[str, np.ndarray]
    others: Path  # LOOSE
    speech: Path  # of the codec

    text_encoder = None

    @property
    def prompts(self) -> Prompts:
        return Prompts(self.config, self.text, self.spec.vocab.codebook_size)

    def generator(self, sampling: SamplingConfig | None = None) -> Generator:
        """Build the Generator."""
        generator = Generator(
            self.model,
            self.spec,
            self.codec,
            sampling or published_sampling(self.spec.vocab.codebooks),
            conditioning=self.prompts,
        )
        generator.text, generator.speakers = self.text, tuple(sorted(self.prompts.speakers))
        return generator


def published_sampling(codebooks: int) -> SamplingConfig:
    """How `qwen_tts` draws: the penalty is that of codebook 0 alone, and counts no code of the prompt."""
    return SamplingConfig(
        temperature=(0.9,),
        top_k=(50,),
        repetition_penalty=(1.05, *(1.0,) * (codebooks - 1)),
        repetition_prompt=False,
        min_frames=2,
    )


def read(folder: Path, dtype: str = "auto", config: dict | None = None) -> Published:
    """A checkpoint. dtype: as `model.dtype`. config: its config.json, if it was read already. Raises one InputError
    that names everything missing, unexpected or of a wrong shape."""
    config, weights = huggingface.read_folder(folder, TYPES, WHAT, config)
    codec = codecs.load("qwen3", folder / SPEECH)
    text = pieces_of(folder)
    spec = described(config, codec, text)
    speaker = {n: x for n, x in weights.tensors.items() if n.startswith(f"{SPEAKER}.")}
    weights.ignore(rf"^{SPEAKER}\.")
    sizes = dataclasses.replace(spec.model, dtype=dtype)
    depth = sizes.depth.layers
    weights.check_layers(num_hidden_layers=sizes.layers, num_code_groups=spec.vocab.codebooks, predictor_layers=depth)
    end = config["talker_config"]["codec_eos_token_id"]
    model = tables.fill(sizes, spec.vocab, table(sizes, spec.vocab, end), weights)
    weights.finish()
    return Published(config, spec, model, codec, text, speaker, folder, folder / SPEECH)


def pieces_of(folder: Path) -> pieces.Pieces:
    """The text vocabulary of a folder: its tokenizer.json, or the one that its older files make."""
    if (folder / FILE).is_file():
        return pieces.read(folder / FILE, WHAT)
    return pieces.Pieces(bpe.json_of(folder, WHAT))


def described(config: dict, codec: Any, text: pieces.Pieces) -> Spec:
    """The Spec of a config.json. Raises InputError for what does not fit."""
    talker = huggingface.part(config, "talker_config", WHAT)
    predictor = huggingface.part(talker, "code_predictor_config", WHAT)
    marks = [f"codec_{name}_id" for name in MARKS]
    blocks.numbers(config, "", [f"tts_{name}_token_id" for name in TEXT_MARKS], 0, WHAT)
    blocks.numbers(
        talker, "talker_config.", (*blocks.SIZES, "vocab_size", "text_vocab_size", "text_hidden_size"), 1, WHAT
    )
    blocks.numbers(talker, "talker_config.", ("num_code_groups", "codec_eos_token_id", *marks), 0, WHAT)
    blocks.numbers(predictor, "talker_config.code_predictor_config.", (*blocks.SIZES, "vocab_size"), 1, WHAT)
    codebooks, codes = talker["num_code_groups"], predictor["vocab_size"]
    if (codebooks, codes) != (codec.codebooks, codec.codebook_size):
        raise InputError(
            f"{WHAT}: the talker has {codebooks} codebooks of {codes} codes, its codec {codec.codebooks} of "
            f"{codec.codebook_size}"
        )
    control = range(codes, talker["vocab_size"])
    named = {name: talker[name] for name in ("codec_eos_token_id", *marks)}
    for part in ("codec_language_id", "spk_id"):
        named |= {f"{part}.{name}": number for name, number in huggingface.part(talker, part, WHAT).items()}
    wrong = [f"{name}={number!r}" for name, number in named.items() if number not in control]
    rows = talker["text_vocab_size"]
    wrong += [f"{n}={config[n]}" for n in (f"tts_{mark}_token_id" for mark in TEXT_MARKS) if config[n] >= rows]
    if wrong:
        raise InputError(
            f"{WHAT}: {huggingface.CONFIG} has {wrong[0]}; codec ids are {control.start}..{control.stop - 1} after "
            f"{codes} codes, text ids 0..{rows - 1}"
        )
    if text.size > rows:
        raise InputError(f"{WHAT}: the tokenizer has {text.size} pieces, the table of text {rows} rows")
    depth = DepthConfig(
        **blocks.qwen3(predictor, "code_predictor_config.", WHAT),
        positions="rotary",
        join="prefix",
        embeddings="backbone",
        **({"projection": "none"} if predictor["hidden_size"] == talker["hidden_size"] else {"projection_bias": True}),
    )
    model = ModelConfig(
        **blocks.qwen3(talker, "talker_config.", WHAT),
        text_rows=rows,
        text_width=talker["text_hidden_size"],
        depth=depth,
    )
    vocab = Vocab(codebooks, codes, MAX_FRAMES, text_size=len(control))
    order, data = SerializationConfig(strategy="depth"), DataConfig(max_frames=MAX_FRAMES, drop_text=0.0)
    return Spec(model, vocab, order, FRAMING, data, text=text.spec)


def save(workdir: Path, p: Published) -> None:
    """Writes a checkpoint as the workdir of a run."""
    copied(p.speech, workdir / CODEC, (huggingface.CONFIG, huggingface.WEIGHTS, "preprocessor_config.json"))
    copied(p.others, workdir / OTHERS, LOOSE)
    p.text.keep(workdir)
    if p.speaker:
        files.write_safetensors(workdir / f"{SPEAKER}.safetensors", p.speaker, {"format": "pt"})
    in_workdir.save(workdir, p)


def copied(source: Path, folder: Path, names: Any) -> None:
    """Copies those files of a folder that are there."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def of_run(workdir: Path, model: Transformer, spec: Spec) -> Published:
    """The weights of a run that began with `save`, with its codec and tokenizer. Raises InputError for other ones than
    those of the training."""
    config = huggingface.read_config(workdir / PUBLISHED_CONFIG, TYPES, WHAT)
    codec = in_workdir.codec_of(workdir, spec)
    kept = workdir / f"{SPEAKER}.safetensors"
    speaker = files.read_safetensors(kept, WHAT)[0] if kept.is_file() else {}
    text = pieces.of_model(spec.text, workdir)
    return Published(config, spec, model, codec, text, speaker, workdir / OTHERS, workdir / spec.codec.path)


def prompts(workdir: Path, spec: Spec) -> Prompts:
    """The prompts of such a run, of which fine-tuning makes its rows."""
    config = huggingface.read_config(workdir / PUBLISHED_CONFIG, TYPES, WHAT)
    return Prompts(config, pieces.of_model(spec.text, workdir), spec.vocab.codebook_size)


def write(folder: str | Path, published: Published) -> None:
    """Saves a checkpoint as it was read, so that `qwen_tts` opens it."""
    folder, end = Path(folder), published.config["talker_config"]["codec_eos_token_id"]
    entries = table(published.model.config, published.spec.vocab, end)
    huggingface.write(folder, published.config, tables.tensors_of(published.model, entries) | published.speaker)
    copied(published.others, folder, LOOSE)
    copied(published.speech, folder / SPEECH, (huggingface.CONFIG, huggingface.WEIGHTS, "preprocessor_config.json"))
