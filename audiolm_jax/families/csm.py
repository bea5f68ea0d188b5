"""CSM (Sesame's Conversational Speech Model): reads and writes its published checkpoint without torch.

The Hugging Face layout of `sesame/csm-1b`: `config.json`, `model.safetensors` (or shards), `tokenizer.json`, the codec
Mimi among the weights. The backbone is the Transformer of model/ as a Llama, which predicts codebook 0; the depth
network of model/depth.py predicts the other codebooks of a frame and reads the backbone's table of codes. The layout of
Sesame's own code is read too: torchtune's names, queries and keys with the two halves of a rotation side by side, and
no codec, for which Mimi lies in the folder `codec` beside the weights.

    generator = audiolm_jax.load("sesame/csm-1b@main")
    result = generator.generate("hello from here", speakers="0", turns=[("1", "who is there", (voice, 24000))])

A turn is the text "[speaker]words" between the tokenizer's begin and end of text, then audio that a frame of zeros ends
(framing `zeros`). Text is given and never predicted. The published tables have three codes more than Mimi knows; here
no legal set holds them, and their rows are kept aside for `write` (`SPARE`).

    WORKDIR/checkpoints/0       the model            WORKDIR/codec               config.json, weights
    WORKDIR/published.json      its config.json      WORKDIR/spare.safetensors   rows of codes that Mimi lacks
    WORKDIR/tokenizer.json
"""

import dataclasses
import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from audiolm_jax import codecs, files
from audiolm_jax.codecs import mimi
from audiolm_jax.data.config import DataConfig
from audiolm_jax.errors import InputError
from audiolm_jax.families import table as tables
from audiolm_jax.families import workdir as in_workdir
from audiolm_jax.families.table import Entry, llama_block, rmsnorm
from audiolm_jax.families.workdir import CODEC, PUBLISHED_CONFIG
from audiolm_jax.hub import files as huggingface
from audiolm_jax.hub.weights import Weights
from audiolm_jax.model.config import DepthConfig, ModelConfig, table_rows
from audiolm_jax.model.spec import Spec
from audiolm_jax.model.transformer import Transformer
from audiolm_jax.sampling import SamplingConfig
from audiolm_jax.sampling import generator as generate
from audiolm_jax.serialization import SerializationConfig, pieces, text
from audiolm_jax.serialization.vocab import TEXT_START, Vocab

FRAMING = "zeros"
WHAT = "CSM"  # begins a message
TYPES, TUNED, FILES = ("csm",), ("csm",), (text.FILE,)
SPARE = "spare.safetensors"  # in a workdir
KEPT = (PUBLISHED_CONFIG, CODEC, SPARE)
END_OF_TEXT = "<|end_of_text|>"
SPEAKER = "0"  # of a turn that names none
PUBLISHED = SamplingConfig(temperature=(0.9,), top_k=(50,))  # as both implementations generate

TEXT, AUDIO = "embed_text_tokens.weight", "depth_decoder.model.embed_tokens.weight"
SAME_AUDIO = "backbone_model.embed_tokens.embed_audio_tokens.weight"  # the same table under another name
FIRST, FINER = "lm_head.weight", "depth_decoder.codebooks_head.weight"
LAYERS = {"layers": "backbone_model.layers.{}", "depth/layers": "depth_decoder.model.layers.{}"}


@dataclasses.dataclass(frozen=True)
class Llama:
    """The fields of a published `config.json` that both parts have, with the defaults of `transformers`."""

    hidden_size: int = 2048
    intermediate_size: int = 8192
    num_hidden_layers: int = 16
    num_attention_heads: int = 32
    num_key_value_heads: int | None = 8
    head_dim: int | None = None
    rms_norm_eps: float = 1e-5
    hidden_act: str = "silu"
    attention_bias: bool = False
    mlp_bias: bool = False
    num_codebooks: int = 32
    vocab_size: int = 2051  # of codes

    def sizes(self, fields: dict) -> dict[str, Any]:
        """The fields of a ModelConfig or a DepthConfig. fields: of the config.json. Raises InputError."""
        for name, only in (("hidden_act", "silu"), ("attention_bias", False), ("mlp_bias", False)):
            if getattr(self, name) != only:
                raise InputError(f"{WHAT}: {huggingface.CONFIG} has {name}={getattr(self, name)!r}; {only!r} is needed")
        heads = self.num_attention_heads
        if self.head_dim is None and self.hidden_size % heads:
            raise InputError(f"{WHAT}: hidden_size={self.hidden_size} is no multiple of num_attention_heads={heads}")
        return {
            "layers": self.num_hidden_layers,
            "width": self.hidden_size,
            "heads": heads,
            "kv_heads": self.num_key_value_heads or heads,
            "head_width": self.head_dim or self.hidden_size // heads,
            "ffn": self.intermediate_size,
            "norm_eps": self.rms_norm_eps,
            **rotary(fields),
        }


@dataclasses.dataclass(frozen=True)
class Backbone(Llama):
    """And those of the backbone."""

    text_vocab_size: int = 128256
    max_position_embeddings: int = 2048
    bos_token_id: int = 128000


@dataclasses.dataclass(frozen=True)
class DepthDecoder(Llama):
    """And those of the depth decoder."""

    hidden_size: int = 1024
    num_hidden_layers: int = 4
    num_attention_heads: int = 8
    num_key_value_heads: int | None = 2
    backbone_hidden_size: int = 2048


def rotary(fields: dict) -> dict[str, Any]:
    """rope_base and rope_scaling of a config.json, whose names changed with transformers 5. Raises InputError."""
    rope = huggingface.part(fields, "rope_parameters", WHAT) or huggingface.part(fields, "rope_scaling", WHAT)
    kind, base = rope.get("rope_type", "default"), rope.get("rope_theta", fields.get("rope_theta", 500000.0))
    if kind not in ("default", "llama3"):
        raise InputError(f"{WHAT}: {huggingface.CONFIG} has rope_type={kind!r}; default or llama3 is needed")
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    scaling = [rope.get(name) for name in names] if kind == "llama3" else []
    if not all(isinstance(x, int | float) and 0 < x < 2**31 for x in (base, *scaling)):
        raise InputError(f"{WHAT}: {huggingface.CONFIG} lacks rope_theta, {', '.join(names)}, or a usable number")
    return {"rope_base": float(base), "rope_scaling": tuple(map(float, scaling))}


def parts(config: dict) -> tuple[Backbone, DepthDecoder, ModelConfig]:
    """(backbone, depth decoder, model) of a config.json. Raises InputError for what does not fit."""
    inner = huggingface.part(config, "depth_decoder_config", WHAT)
    backbone = huggingface.config_of(config, Backbone, what=WHAT)
    depth = huggingface.config_of(inner, DepthDecoder, what=WHAT)
    wanted = {
        "num_codebooks": backbone.num_codebooks,
        "vocab_size": backbone.vocab_size,
        "backbone_hidden_size": backbone.hidden_size,
    }
    for name, value in wanted.items():
        if getattr(depth, name) != value:
            raise InputError(
                f"{WHAT}: depth_decoder_config.{name}={getattr(depth, name)}, but that of the backbone is {value}"
            )
    for name, only in (("codebook_eos_token_id", 0), ("tie_codebooks_embeddings", True)):
        if config.get(name, only) != only:
            raise InputError(f"{WHAT}: {huggingface.CONFIG} has {name}={config[name]!r}; {only!r} is needed")
    network = DepthConfig(
        **depth.sizes(inner), join="prefix", positions="rotary", embeddings="backbone", projection="shared"
    )
    return backbone, depth, ModelConfig(**backbone.sizes(config), depth=network)


def table(c: ModelConfig, vocab: Vocab) -> list[Entry]:
    """Every parameter of the model with the tensors it is read from and written to, without the rows of `SPARE`."""
    D, d, Q, K, texts = c.width, c.depth.width, vocab.codebooks, vocab.codebook_size, vocab.text_size
    first = vocab.first

    def pack_embedding(both: list[np.ndarray]) -> np.ndarray:
        embedding_VD = np.zeros((table_rows(vocab.size), D), np.float32)
        embedding_VD[TEXT_START : vocab.length_start] = np.concatenate(both)
        return embedding_VD

    def pack_head(heads: list[np.ndarray]) -> np.ndarray:
        unembedding_DV = np.zeros((D, table_rows(first.size)), np.float32)
        unembedding_DV[:, first.code_start : first.length_start] = heads[0].T
        return unembedding_DV

    return [
        Entry(
            "embedding_VD",
            [TEXT, AUDIO],
            [(texts, D), (Q * K, D)],
            pack_embedding,
            lambda x: np.split(x[TEXT_START : vocab.length_start], [texts]),
        ),
        *llama_block("layers", LAYERS["layers"], c),
        rmsnorm("norm", "backbone_model.norm", D),
        Entry(
            "unembedding_DV", [FIRST], [(K, D)], pack_head, lambda x: [x[:, first.code_start : first.length_start].T]
        ),
        Entry(
            "depth/project_PDd",
            ["depth_decoder.model.inputs_embeds_projector.weight"],
            [(d, D)],
            lambda x: x[0].T[None],
            lambda x: [x[0].T],
        ),
        *llama_block("depth/layers", LAYERS["depth/layers"], c.depth.block),
        rmsnorm("depth/norm", "depth_decoder.model.norm", d),
        Entry("depth/output_CdK", [FINER], [(Q - 1, d, K)], lambda x: x[0], lambda x: [x]),
    ]


def cut(weights: Weights, c: ModelConfig, vocab: Vocab, codes: int) -> dict[str, np.ndarray]:
    """Takes the rows of codes that Mimi lacks out of the tensors of a file, which has so many codes; returns them."""
    Q, K, D, d = vocab.codebooks, vocab.codebook_size, c.width, c.depth.width
    shapes = {AUDIO: (Q * codes, D), FIRST: (codes, D), FINER: (Q - 1, d, codes)}
    whole = {name: weights.take(name, shape) for name, shape in shapes.items()}
    audio_QKD = whole[AUDIO].reshape(Q, codes, D)
    weights.tensors[AUDIO] = audio_QKD[:, :K].reshape(Q * K, D)
    weights.tensors[FIRST], weights.tensors[FINER] = whole[FIRST][:K], whole[FINER][..., :K]
    spare = {AUDIO: audio_QKD[:, K:], FIRST: whole[FIRST][K:], FINER: whole[FINER][..., K:]}
    return {name: np.ascontiguousarray(x) for name, x in spare.items()}


def joined(tensors: dict[str, np.ndarray], spare: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of `cut`."""
    Q, _, D = spare[AUDIO].shape
    audio_QKD = np.concatenate([tensors[AUDIO].reshape(Q, -1, D), spare[AUDIO]], axis=1)
    return tensors | {
        AUDIO: audio_QKD.reshape(-1, D),
        FIRST: np.concatenate([tensors[FIRST], spare[FIRST]]),
        FINER: np.concatenate([tensors[FINER], spare[FINER]], axis=2),
    }


def from_original(tensors: dict[str, np.ndarray], c: ModelConfig) -> dict[str, np.ndarray]:
    """The tensors of Sesame's own layout under their names in the Hugging Face layout; others stay as they are."""
    parts = {"backbone": ("backbone_model", c.head_width), "decoder": ("depth_decoder.model", c.depth.head_width)}
    inner = {
        "sa_norm.scale": "input_layernorm.weight",
        "mlp_norm.scale": "post_attention_layernorm.weight",
        "attn.output_proj.weight": "self_attn.o_proj.weight",
        **{f"attn.{x}_proj.weight": f"self_attn.{x}_proj.weight" for x in "qkv"},
        **{f"mlp.w{n}.weight": f"mlp.{x}_proj.weight" for n, x in ((1, "gate"), (2, "down"), (3, "up"))},
    }
    outer = {
        "text_embeddings.weight": TEXT,
        "audio_embeddings.weight": AUDIO,
        "codebook0_head.weight": FIRST,
        "audio_head": FINER,
        "projection.weight": "depth_decoder.model.inputs_embeds_projector.weight",
        **{f"{theirs}.norm.scale": f"{ours}.norm.weight" for theirs, (ours, _) in parts.items()},
    }
    found = {}
    for name, tensor in tensors.items():
        layer = re.fullmatch(r"(backbone|decoder)\.layers\.(\d+)\.(.+)", name)
        if layer and layer[3] in inner:
            ours, head_width = parts[layer[1]]
            if layer[3] in ("attn.q_proj.weight", "attn.k_proj.weight"):
                tensor = halves(tensor, head_width)
            name = f"{ours}.layers.{layer[2]}.{inner[layer[3]]}"
        found[outer.get(name, name)] = tensor
    return found


def halves(matrix: np.ndarray, head_width: int) -> np.ndarray:
    """Rows of queries or keys [heads * K, D] whose channels 2 i and 2 i + 1 turn together -> i and i + K / 2 do."""
    if matrix.ndim != 2 or len(matrix) % head_width:
        return matrix  # of a wrong shape, which `Weights.take` says
    return matrix.reshape(-1, head_width // 2, 2, matrix.shape[1]).swapaxes(1, 2).reshape(matrix.shape)


@dataclasses.dataclass(frozen=True)
class Published:
    """A checkpoint: its config.json, the model with its description, codec and texts; the rows of `SPARE`, and a
    function that gives the config.json and the tensors of the codec."""

    config: dict
    spec: Spec
    model: Transformer
    codec: Any
    text: pieces.Pieces
    spare: dict[str, np.ndarray]
    codec_files: Callable[[], tuple[dict, dict[str, np.ndarray]]]

    @property
    def vocab(self) -> Vocab:
        return self.spec.vocab

    def generator(self, sampling: SamplingConfig | None = None) -> generate.Generator:
        """Build the Generator."""
        context = self.spec.data.sequence_length
        generator = generate.Generator(self.model, self.spec, self.codec, sampling or PUBLISHED, context)
        generator.text, generator.speakers = self.text, self.spec.speakers
        return generator


def read(folder: Path, dtype: str = "auto", config: dict | None = None) -> Published:
    """A checkpoint. dtype: as `model.dtype`. config: its config.json, if it was read already. Raises one InputError
    that names everything missing, unexpected or of a wrong shape."""
    config, weights = huggingface.read_folder(folder, TYPES, WHAT, config)
    backbone, _, model = parts(config)
    weights.check_layers(num_hidden_layers=model.layers, num_codebooks=backbone.num_codebooks)
    tokens = pieces.read(folder / text.FILE, WHAT, limit=backbone.text_vocab_size)
    if "text_embeddings.weight" in weights.tensors:
        weights.tensors = from_original(weights.tensors, model)
    other = weights.tensors.pop(SAME_AUDIO, None)
    if other is not None and not np.array_equal(weights.tensors.setdefault(AUDIO, other), other):
        raise InputError(f"{WHAT}: {weights.path} has two tables of codes, {AUDIO} and {SAME_AUDIO}; one is needed")
    codec, codec_files = read_codec(folder, config, weights, backbone.num_codebooks)
    spec = described(backbone, model, codec, tokens)
    sizes = dataclasses.replace(model, dtype=dtype)
    spare = cut(weights, sizes, spec.vocab, backbone.vocab_size)
    network = tables.fill(sizes, spec.vocab, table(sizes, spec.vocab), weights)
    weights.finish()
    return Published(config, spec, network, codec, tokens, spare, codec_files)


def read_codec(folder: Path, config: dict, weights: Weights, codebooks: int) -> tuple[Any, Callable]:
    """(Mimi, `Published.codec_files`) among the weights, or in a folder beside them. Raises InputError."""
    given = huggingface.part(config, "codec_config", WHAT)
    with weights.below("codec_model.") as part:
        tensors = dict(part.tensors)
        if tensors:
            fields = {**given, "model_type": "mimi"}
            return mimi.take(fields, part, codebooks), lambda: (fields, tensors)
    if not (folder / CODEC).is_dir():
        raise InputError(
            f"{WHAT}: {weights.path} holds no codec (codec_model.*), and there is no folder {folder / CODEC}; put the "
            "files of kyutai/mimi there"
        )
    return codecs.load("mimi", folder / CODEC, codebooks), functools.partial(codec_files, folder / CODEC)


def codec_files(folder: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """(config.json, tensors) of a codec in a folder."""
    path = folder / huggingface.WEIGHTS
    return files.read_json(folder / huggingface.CONFIG, WHAT), files.read_safetensors(path, WHAT)[0]


def described(backbone: Backbone, model: ModelConfig, codec: Any, tokens: pieces.Pieces) -> Spec:
    """The Spec of a checkpoint. Raises InputError if its codes are not those of the codec, or its ids not those of the
    tokenizer."""
    Q, K, frames = backbone.num_codebooks, codec.codebook_size, backbone.max_position_embeddings
    if codec.codebooks != Q or backbone.vocab_size < K:
        raise InputError(
            f"{WHAT}: the model has {Q} codebooks of {backbone.vocab_size} codes, its codec {codec.codebooks} of {K}"
        )
    begin = tokens.tokenizer.id_to_token(backbone.bos_token_id)
    if begin is None or tokens.tokenizer.token_to_id(END_OF_TEXT) is None:
        raise InputError(
            f"{WHAT}: {text.FILE} has no token {backbone.bos_token_id} (bos_token_id) or no {END_OF_TEXT}, between "
            "which a turn stands; give the one that was published with the model"
        )
    vocab = Vocab(Q, K, frames, text_size=tokens.size, text_given=True)
    template = f"{begin}[{{speaker}}]{{text}}{END_OF_TEXT}"
    data = DataConfig(max_frames=frames, sequence_length=frames, template=template, speaker=SPEAKER, drop_text=0.0)
    return Spec(model, vocab, SerializationConfig(strategy="depth"), FRAMING, data, text=tokens.spec)


def save(workdir: Path, p: Published) -> None:
    """Writes a checkpoint as the workdir of a run."""
    config, tensors = p.codec_files()
    huggingface.write(workdir / CODEC, config, tensors)
    files.write_safetensors(workdir / SPARE, p.spare)
    p.text.keep(workdir)
    in_workdir.save(workdir, p, codebooks=p.codec.codebooks)


def of_run(workdir: Path, model: Transformer, spec: Spec) -> Published:
    """The weights of a run that began with `save`, with its codec. Raises InputError for another codec than that of the
    training."""
    config = huggingface.read_config(workdir / PUBLISHED_CONFIG, TYPES, WHAT)
    folder = workdir / spec.codec.path
    codec = in_workdir.codec_of(workdir, spec)
    spare = files.read_safetensors(workdir / SPARE, WHAT)[0]
    tokens = pieces.of_model(spec.text, workdir)
    return Published(config, spec, model, codec, tokens, spare, functools.partial(codec_files, folder))


def tensors_of(p: Published) -> dict[str, np.ndarray]:
    """The model under its published names, float32."""
    return joined(tables.tensors_of(p.model, table(p.model.config, p.vocab)), p.spare)


def write(folder: str | Path, published: Published) -> None:
    """Saves a checkpoint in the Hugging Face layout, so that `transformers` opens it."""
    codec, codec_tensors = published.codec_files()
    tensors = tensors_of(published) | {f"codec_model.{name}": x for name, x in codec_tensors.items()}
    # A file of weights that the published config.json may name is not the one written here.
    config = {name: x for name, x in published.config.items() if name != "transformers_weights"}
    huggingface.write(folder, {**config, "codec_config": codec}, tensors)
    files.write_text(Path(folder) / text.FILE, published.text.json)
    Q, t, k = published.vocab.codebooks, PUBLISHED.temperature[0], PUBLISHED.top_k[0]
    drawn = {"do_sample": True, "temperature": t, "top_k": k}
    count = {f"{which}_new_tokens": Q - 1 for which in ("min", "max")}
    generation = {**drawn, **{f"depth_decoder_{name}": value for name, value in {**drawn, **count}.items()}}
    files.write_json(Path(folder) / "generation_config.json", generation)
