"""MusicGen (arXiv 2306.05284): reads and writes its published checkpoints without torch.

The Hugging Face layout of `facebook/musicgen-small`, `-medium`, `-large`, `-melody` and their stereo versions:
`config.json`, `model.safetensors` (or shards), `tokenizer.json`. The decoder is the Transformer of model/ with
LayerNorm, exact GELU and sinusoidal positions, the framing `bare` and the delay order; the text encoder is T5
(encoders/t5.py), the codec EnCodec at 32 kHz. The decoder cross-attends to the text. In `-melody` chroma
(encoders/chroma.py) and text are segments of states before the audio instead, causal, at positions of their own;
without a melody every chroma frame is the first class. The unconditional branch of guidance has no melody, and zeros
in place of the text.

    generator = audiolm_jax.load("facebook/musicgen-small@main")
    result = generator.generate("slow jazz with a loud piano", seconds=8)

The workdir of an imported checkpoint holds the text encoder and the codec in folders of their own:

    WORKDIR/checkpoints/0       the decoder          WORKDIR/text_encoder    config.json, weights, tokenizer.json
    WORKDIR/published.json      its config.json      WORKDIR/codec           a path that --config.codec.path takes
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from audiolm_jax import files
from audiolm_jax.codecs import encodec
from audiolm_jax.codecs.stereo import Stereo
from audiolm_jax.data.config import DataConfig
from audiolm_jax.encoders import chroma, t5
from audiolm_jax.errors import InputError
from audiolm_jax.families import blocks
from audiolm_jax.families import table as tables
from audiolm_jax.families import workdir as in_workdir
from audiolm_jax.families.table import Entry, into_ffn, into_heads, layernorm, out_of_heads, plain
from audiolm_jax.families.workdir import CODEC, PUBLISHED_CONFIG
from audiolm_jax.hub import files as huggingface
from audiolm_jax.model.config import ModelConfig, table_rows
from audiolm_jax.model.spec import ConditioningSpec, Spec
from audiolm_jax.model.transformer import Transformer
from audiolm_jax.sampling import SamplingConfig, windows
from audiolm_jax.sampling import generator as generate
from audiolm_jax.sampling.rows import Row
from audiolm_jax.serialization import SerializationConfig
from audiolm_jax.serialization.documents import Document
from audiolm_jax.serialization.framing import FRAMINGS
from audiolm_jax.serialization.vocab import Vocab

FRAMING = "bare"
WHAT = "MusicGen"  # begins a message
MELODY = "musicgen_melody"  # has segments of states before its audio and no cross-attention
TYPES, TUNED, FILES = ("musicgen", MELODY), ("musicgen",), (t5.TOKENIZER,)
TEXT = "text_encoder"  # in a workdir
KEPT = (PUBLISHED_CONFIG, TEXT, CODEC)
SECONDS = 30  # what the published models were trained on
PUBLISHED = SamplingConfig(top_k=(250,), guidance=3.0)  # as audiocraft generates
GELU = {"gelu": "exact", "gelu_new": "plain", "gelu_pytorch_tanh": "plain"}


def table(c: ModelConfig, vocab: Vocab) -> list[Entry]:
    """Every parameter of the decoder with the tensors it is read from and written to."""
    D, F, Q, V = c.width, c.ffn, vocab.codebooks, vocab.codebook_size
    sizes = (c.heads, c.kv_heads, c.head_width)
    layer, rows = "decoder.model.decoder.layers.{}", table_rows(vocab.size)
    code_ids = vocab.code_start + np.arange(Q * V)
    special_ids = vocab.extra_start + np.arange(Q)

    def pack_embedding(tables: list[np.ndarray]) -> np.ndarray:
        """Q tables of V codes and the special token; the rows of ids that MusicGen lacks are zero."""
        embedding_VD = np.zeros((rows, D), np.float32)
        embedding_VD[code_ids] = np.concatenate([x[:V] for x in tables])
        embedding_VD[special_ids] = [x[V] for x in tables]
        return embedding_VD

    def unpack_embedding(embedding_VD: np.ndarray) -> list[np.ndarray]:
        codes_QVD = embedding_VD[code_ids].reshape(Q, V, D)
        return [np.concatenate([codes_QVD[q], embedding_VD[special_ids[q], None]]) for q in range(Q)]

    def pack_heads(heads: list[np.ndarray]) -> np.ndarray:
        unembedding_DV = np.zeros((D, rows), np.float32)
        unembedding_DV[:, code_ids] = np.concatenate(heads).T
        return unembedding_DV

    def unpack_heads(unembedding_DV: np.ndarray) -> list[np.ndarray]:
        return list(unembedding_DV[:, code_ids].T.reshape(Q, V, D))

    embeddings = [f"decoder.model.decoder.embed_tokens.{q}.weight" for q in range(Q)]
    heads = [f"decoder.lm_heads.{q}.weight" for q in range(Q)]
    entries = [
        Entry("embedding_VD", embeddings, [(V + 1, D)] * Q, pack_embedding, unpack_embedding),
        *layernorm("layers/attention_norm", f"{layer}.self_attn_layer_norm", D),
        into_heads("layers/qkv_DHAK", [f"{layer}.self_attn.{x}_proj.weight" for x in "qkv"], "qkv", sizes, D),
        out_of_heads("layers/out_HGKD", f"{layer}.self_attn.out_proj.weight", sizes, D),
        *layernorm("layers/ffn_norm", f"{layer}.final_layer_norm", D),
        into_ffn("layers/up_DCF", [f"{layer}.fc1.weight"], 1, D, F),
        plain("layers/down_FD", f"{layer}.fc2.weight", D, F),
        *layernorm("norm", "decoder.model.decoder.layer_norm", D),
        Entry("unembedding_DV", heads, [(V, D)] * Q, pack_heads, unpack_heads),
    ]
    if c.cross_width:
        entries += [
            *layernorm("layers/cross/norm", f"{layer}.encoder_attn_layer_norm", D),
            into_heads("layers/cross/q_DHGK", [f"{layer}.encoder_attn.q_proj.weight"], "q", sizes, D),
            into_heads("layers/cross/kv_DHCK", [f"{layer}.encoder_attn.{x}_proj.weight" for x in "kv"], "kv", sizes, D),
            out_of_heads("layers/cross/out_HGKD", f"{layer}.encoder_attn.out_proj.weight", sizes, D),
        ]
    # States are projected unless they have the decoder's width: of the text alone, or of chroma and text.
    states = [("states", "enc_to_dec_proj", c.cross_width)]
    if c.state_widths:
        pairs = (("states0", "audio_enc_to_dec_proj"), ("states1", "enc_to_dec_proj"))
        states = [(*pair, width) for pair, width in zip(pairs, c.state_widths, strict=True)]
    for ours, theirs, width in states:
        if width != D:
            entries.append(plain(f"{ours}_WD", f"{theirs}.weight", D, width))
            entries.append(plain(f"{ours}_bias_D", f"{theirs}.bias", D))
    return entries


@dataclasses.dataclass(frozen=True)
class Published:
    """A checkpoint: its config.json, the decoder with its description, codec, text encoder and tokenizer.json."""

    config: dict
    spec: Spec
    model: Transformer
    codec: Any
    encoder: t5.Encoder
    tokenizer: Path

    @property
    def vocab(self) -> Vocab:
        return self.spec.vocab

    def generator(self, sampling: SamplingConfig | None = None) -> generate.Generator:
        """Build the Generator."""
        return generate.Generator(
            self.model,
            self.spec,
            self.codec,
            sampling or PUBLISHED,
            conditioning=self.conditioning,
            windows=windows.Windows(self.vocab.max_frames, round(windows.STRIDE * self.codec.frame_rate)),
        )

    @property
    def text_encoder(self) -> t5.TextEncoder:
        return t5.TextEncoder(self.encoder, t5.read_tokenizer(self.tokenizer))

    @property
    def conditioning(self) -> "Conditioning":
        if self.config["model_type"] != MELODY:
            return Conditioning(self.text_encoder)
        frames, classes = self.config.get("chroma_length", 235), self.config.get("num_chroma", 12)
        return Conditioning(self.text_encoder, chroma.Melody(frames, classes, self.codec.sample_rate))


@dataclasses.dataclass(frozen=True)
class Conditioning:
    """Texts and melodies -> the conditioning of requests (`generator.Conditioning`).

    melody: makes chroma of recordings, for a model with segments of states; None: cross-attention to the text.
    """

    text_encoder: t5.TextEncoder
    melody: chroma.Melody | None = None

    speaks = False

    @property
    def takes(self) -> tuple[str, ...]:
        return () if self.melody is None else ("melody",)

    def __call__(self, texts: Sequence[str], wanted: Sequence[Row]) -> list[dict[str, Any]]:
        states = self.text_encoder(texts)
        if self.melody is None:
            return [{"encoded_EW": text_EW} for text_EW in states]
        pairs = zip(wanted, states, strict=True)
        return [_before_audio(self.melody.of(row.melody), text_EW) for row, text_EW in pairs]


def _before_audio(melody: chroma.Melody, text_EW: np.ndarray) -> dict[str, Any]:
    """The fields of a Request for chroma and text as segments of states."""
    if not len(text_EW):  # one position of zeros, like the masked end-of-text of an empty text in the reference
        text_EW = np.zeros((1, text_EW.shape[1]), np.float32)

    def document(melody: chroma.Melody, text_EW: np.ndarray) -> Document:
        # The columns of the two are disjoint: each kind has a projection of its own.
        chroma_CW = np.pad(melody.chroma_CW, ((0, 0), (0, text_EW.shape[1])))
        return ("states", chroma_CW), ("states", np.pad(text_EW, ((0, 0), (melody.classes, 0))))

    return {
        "document": document(melody, text_EW),
        "unconditional": document(melody.of(None), np.zeros_like(text_EW)),
        "window": lambda start: document(melody.rolled(start), text_EW),
    }


def read(folder: Path, dtype: str = "auto", config: dict | None = None) -> Published:
    """A checkpoint. dtype: as `model.dtype`. config: its config.json, if it was read already. Raises one InputError
    that names everything missing, unexpected or of a wrong shape."""
    config, weights = huggingface.read_folder(folder, TYPES, WHAT, config)
    if not (folder / t5.TOKENIZER).is_file():
        weights.problems.append(f"the file {t5.TOKENIZER} is missing")
    else:
        t5.read_tokenizer(folder / t5.TOKENIZER)
    # Sinusoidal positions, which older files hold.
    weights.ignore(r"^decoder\.model\.decoder\.embed_positions\.weights$")
    with weights.below("audio_encoder.") as part:
        codec = encodec.take(huggingface.part(config, "audio_encoder", WHAT), part)
    with weights.below("text_encoder.") as part:
        text = huggingface.config_of(huggingface.part(config, "text_encoder", WHAT), t5.T5Config, what=WHAT)
        encoder = t5.take(text, part)
    spec, codec = described(config, codec, text)
    weights.check_layers(num_hidden_layers=spec.model.layers, num_codebooks=spec.vocab.codebooks)
    sizes = dataclasses.replace(spec.model, dtype=dtype)
    model = tables.fill(sizes, spec.vocab, table(sizes, spec.vocab), weights)
    weights.finish()
    return Published(config, spec, model, codec, encoder, folder / t5.TOKENIZER)


def described(config: dict, codec: Any, text: t5.T5Config) -> tuple[Spec, Any]:
    """(the Spec of a config.json, its codec, stereo if the decoder is). Raises InputError for what does not fit."""
    decoder = huggingface.part(config, "decoder", WHAT)
    needed = ("vocab_size", "num_hidden_layers", "ffn_dim", "num_attention_heads", "hidden_size", "num_codebooks")
    blocks.numbers(decoder, "decoder.", needed, 1, WHAT)
    if decoder.get("activation_function", "gelu") not in tuple(GELU):
        raise InputError(
            f"{WHAT}: decoder.activation_function={decoder['activation_function']!r} is not known; known are "
            f"{', '.join(GELU)}"
        )
    width, heads = decoder["hidden_size"], decoder["num_attention_heads"]
    if width % heads:
        raise InputError(f"{WHAT}: decoder.hidden_size={width} is no multiple of num_attention_heads={heads}")
    classes = 0
    if config.get("model_type") == MELODY:
        classes, frames = (config.get(name, size) for name, size in (("num_chroma", 12), ("chroma_length", 235)))
        if not all(isinstance(n, int) and 0 < n < 2**16 for n in (classes, frames)):
            raise InputError(f"{WHAT}: num_chroma={classes!r}, chroma_length={frames!r} must be from 1 to {2**16 - 1}")
    codec = Stereo(codec) if decoder.get("audio_channels", 1) == 2 else codec
    codebooks, size = decoder["num_codebooks"], decoder["vocab_size"]
    if (codebooks, size) != (codec.codebooks, codec.codebook_size):
        raise InputError(
            f"{WHAT}: the decoder has {codebooks} codebooks of {size} codes, its audio encoder {codec.codebooks} of "
            f"{codec.codebook_size}"
        )
    # Left and right of a codebook share a step.
    delays = tuple(q // 2 for q in range(codec.codebooks)) if codec.channels == 2 else ()
    model = ModelConfig(
        layers=decoder["num_hidden_layers"],
        width=width,
        heads=heads,
        kv_heads=heads,
        head_width=width // heads,
        ffn=decoder["ffn_dim"],
        norm="layernorm",
        norm_eps=1e-5,
        mlp=GELU[decoder.get("activation_function", "gelu")],
        positions="sinusoidal",
        **({"state_widths": (classes, text.d_model)} if classes else {"cross_width": text.d_model}),
    )
    frames = round(SECONDS * codec.frame_rate)
    vocab = Vocab(codebooks, size, frames, FRAMINGS[FRAMING].extra_ids(codebooks))
    order, data = SerializationConfig(strategy="delay", delays=delays), DataConfig(max_frames=frames)
    return Spec(model, vocab, order, FRAMING, data), codec


def save(workdir: Path, p: Published) -> None:
    """Writes a checkpoint as the workdir of a run."""
    encodec.save(workdir / CODEC, *mono(p.codec).config)
    t5.save(workdir / TEXT, p.encoder)
    files.write_text(workdir / TEXT / t5.TOKENIZER, p.tokenizer.read_text(encoding="utf-8"))
    in_workdir.save(workdir, p, t5.tensors_of(p.encoder), conditioning=ConditioningSpec(TEXT))


def of_run(workdir: Path, model: Transformer, spec: Spec) -> Published:
    """The weights of a run that began with `save`, with its codec and text encoder. Raises InputError for another codec
    than that of the training."""
    config = huggingface.read_config(workdir / PUBLISHED_CONFIG, TYPES, WHAT)
    codec = in_workdir.codec_of(workdir, spec)
    text = workdir / spec.conditioning.text_encoder
    return Published(config, spec, model, codec, t5.load(text), text / t5.TOKENIZER)


def mono(codec: Any) -> Any:
    """The codec of one channel."""
    return codec.mono if isinstance(codec, Stereo) else codec


def tensors_of(model: Transformer, vocab: Vocab) -> dict[str, np.ndarray]:
    """The decoder under its published names, float32."""
    return tables.tensors_of(model, table(model.config, vocab))


def write(folder: str | Path, published: Published) -> None:
    """Saves a checkpoint as it was read, so that `transformers` opens it."""
    folder = Path(folder)
    tensors = tensors_of(published.model, published.vocab)
    for prefix, part in (
        ("audio_encoder.", encodec.described(*mono(published.codec).config)[1]),
        ("text_encoder.", t5.tensors_of(published.encoder)),
    ):
        tensors |= {prefix + name: tensor for name, tensor in part.items()}
    huggingface.write(folder, published.config, tensors)
    special = published.vocab.codebook_size
    generation = {
        **{f"{name}_token_id": special for name in ("pad", "bos", "decoder_start")},
        "do_sample": True,
        "guidance_scale": PUBLISHED.guidance,
        "top_k": PUBLISHED.top_k[0],
        "max_length": published.vocab.max_frames,
    }
    files.write_json(folder / "generation_config.json", generation)
    files.write_text(folder / t5.TOKENIZER, published.tokenizer.read_text(encoding="utf-8"))
