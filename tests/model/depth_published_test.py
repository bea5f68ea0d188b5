"""The depth networks of CSM, Moshi and Qwen3-Omni (its code predictor) against `transformers`, on random weights of
odd sizes; and a whole Moshi against files of its authors.

With scaled dot-product attention: without a mask the eager one of `MoshiDepthDecoder` is not causal (transformers
5.23.0).
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from audiolm_jax import files
from audiolm_jax.families import table as tables
from audiolm_jax.model.config import DepthConfig, ModelConfig
from audiolm_jax.model.layers import sinusoids
from audiolm_jax.model.transformer import language_model
from audiolm_jax.serialization.vocab import Vocab
from tests.helpers import published_blocks

torch = pytest.importorskip("torch", reason="the reference needs torch: pip install 'audiolm-jax[parity]'")
transformers = pytest.importorskip("transformers", reason="pip install 'audiolm-jax[parity]'")

K, D, N = 13, 20, 5  # codes, width of the transformer, frames
FIXTURES = Path(__file__).parents[3] / "shared" / "fixtures" / "moshi_lm"


def network_of(depth: DepthConfig, streams: int, size: int = K):
    """(model, vocabulary) whose first stream is before the depth network's, each of `size` codes."""
    vocab = Vocab(streams, size, 1)
    config = ModelConfig(layers=1, width=D, heads=1, kv_heads=1, head_width=4, ffn=4, depth=depth)
    return language_model(config, vocab, nnx.Rngs(0)), vocab


def put(module, **arrays):
    """Sets parameters, of the shapes that they have."""
    for name, x in arrays.items():
        at = module
        *parents, leaf = name.split("__")
        for parent in parents:
            at = getattr(at, parent)
        assert getattr(at, leaf).shape == np.shape(x), (name, getattr(at, leaf).shape, np.shape(x))
        getattr(at, leaf)[...] = jnp.asarray(np.asarray(x))


def put_block(model, depth: DepthConfig, tensors: dict) -> None:
    """The layers and the last norm of a depth network with Llama's or Qwen3's blocks."""
    entries = tables.llama_block("depth/layers", "layers.{}", depth.block)
    published_blocks.put(model, [*entries, tables.rmsnorm("depth/norm", "norm", depth.width)], tensors)


def heads(q, k, v, kv_heads: int, width: int):
    """Matrices [..., heads * K, d] of queries, keys and values as [..., d, H, A, K]."""

    def split(x):
        x = np.swapaxes(x, -1, -2)
        return x.reshape(*x.shape[:-1], kv_heads, -1, width)

    return np.concatenate([split(x) for x in (q, k, v)], axis=-2)


def of_layers(count: int, one) -> dict:
    """`one(n)` of every layer, stacked."""
    every = [one(n) for n in range(count)]
    return {f"layers__{name}": np.stack([each[name] for each in every]) for name in every[0]}


def numpy_of(module) -> dict:
    torch.manual_seed(0)
    with torch.no_grad():
        for name, x in module.named_parameters():
            x.copy_(torch.randn_like(x) * (0.3 if x.ndim > 1 else 0.2) + (1 if "norm" in name else 0))
    return {name: x.detach().numpy() for name, x in module.state_dict().items()}


def at_once_and_one_by_one(model, state_ND, tokens_NS, table_VD=None):
    """Logits [N, C, K] of all cells in one pass and drawn one after the other."""
    network = model.depth
    whole_NCK = jax.jit(lambda: network.logits(network(state_ND, tokens_NS[:, :-1], table_VD)))()

    @jax.jit
    def drawn():
        def pick(c, logits_MK, seen_NCK):
            logits_M1K = jax.sharding.reshard(logits_MK, jax.P())[:, None]
            return jnp.take(tokens_NS, c + 1, axis=1), jax.lax.dynamic_update_slice_in_dim(
                seen_NCK, logits_M1K, c, axis=1
            )

        empty_NCK = jnp.zeros(whole_NCK.shape)
        count = jnp.int32(network.cells)
        return network.unstacked().draw(state_ND, tokens_NS[:, 0], count, pick, empty_NCK, table_VD)

    return np.asarray(whole_NCK), np.asarray(drawn())


def inputs(streams: int, size: int = K):
    rng = np.random.default_rng(0)
    return rng.standard_normal((N, D)).astype(np.float32), rng.integers(0, size, (N, streams))


def close(found, expected):
    for each in found:
        np.testing.assert_allclose(each, expected, atol=1e-4)


def test_csm():
    books, scaling = 5, (4.0, 0.5, 2.0, 16.0)
    sizes = {"layers": 2, "width": 12, "heads": 4, "kv_heads": 2, "head_width": 6, "ffn": 14, "norm_eps": 1e-5}
    rope = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 0.5, "high_freq_factor": 2.0}
    rope |= {"original_max_position_embeddings": 16, "rope_theta": 100.0}
    reference = transformers.CsmDepthDecoderForCausalLM(
        transformers.CsmDepthDecoderConfig(
            num_codebooks=books, backbone_hidden_size=D, vocab_size=K, hidden_size=12, intermediate_size=14, head_dim=6,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=books,
            rope_parameters=rope, rms_norm_eps=1e-5, attn_implementation="sdpa",
        )
    )  # fmt: skip
    tensors = numpy_of(reference)
    state_ND, codes_NQ = inputs(books)
    with torch.no_grad():
        ids = torch.tensor(np.concatenate([0 * codes_NQ[:, :1], codes_NQ[:, :-1]], axis=1))
        expected = reference(ids, backbone_last_hidden_state=torch.tensor(state_ND)).logits.numpy()

    depth = DepthConfig(
        **sizes, join="prefix", positions="rotary", rope_base=100.0, rope_scaling=scaling, embeddings="backbone"
    )
    model, vocab = network_of(depth, books)
    layers = {name.removeprefix("model."): x for name, x in tensors.items()}
    put(
        model.depth,
        project_PDd=layers["inputs_embeds_projector.weight"].T[None],
        output_CdK=tensors["codebooks_head.weight"],
    )
    put_block(model, depth, layers)
    table_VD = jnp.concatenate([jnp.zeros((vocab.code_start, D)), layers["embed_tokens.weight"]])
    tokens_NQ = jnp.asarray(vocab.code_ids(codes_NQ))
    close(at_once_and_one_by_one(model, jnp.asarray(state_ND), tokens_NQ, table_VD), expected)


def test_code_predictor_of_qwen3_omni():
    from transformers.models.qwen3_omni_moe import configuration_qwen3_omni_moe as configurations
    from transformers.models.qwen3_omni_moe import modeling_qwen3_omni_moe as modeling

    books = 5
    config = configurations.Qwen3OmniMoeTalkerCodePredictorConfig(
        vocab_size=K, hidden_size=D, intermediate_size=14, head_dim=6, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, rms_norm_eps=1e-6, num_code_groups=books, max_position_embeddings=16,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0}, attn_implementation="sdpa",
    )  # fmt: skip
    reference = modeling.Qwen3OmniMoeTalkerCodePredictorModelForConditionalGeneration(config)
    tensors = numpy_of(reference)
    state_ND, codes_NQ = inputs(books)
    first_KD = np.random.default_rng(1).standard_normal((K, D)).astype(np.float32)  # the talker's own table

    depth = DepthConfig(
        layers=2, width=D, heads=4, kv_heads=2, head_width=6, ffn=14, qk_norm=True, join="prefix", positions="rotary",
        rope_base=100.0, projection="none",
    )  # fmt: skip
    model, vocab = network_of(depth, books)
    layers = {name.removeprefix("model."): x for name, x in tensors.items()}
    finer = [layers[f"codec_embedding.{q}.weight"] for q in range(books - 2)]
    put(
        model.depth,
        embedding_Rd=np.concatenate([first_KD, *finer]),
        output_CdK=np.stack([tensors[f"lm_head.{q}.weight"].T for q in range(books - 1)]),
    )
    put_block(model, depth, layers)
    tables = [first_KD, *finer]
    embedded = np.stack([table[codes_NQ[:, q]] for q, table in enumerate(tables)], axis=1)
    expected = []
    with torch.no_grad():
        for c in range(books - 1):  # a pass over the first 2 + c positions gives the logits of cell c
            x = torch.tensor(np.concatenate([state_ND[:, None], embedded[:, : c + 1]], axis=1))
            expected.append(reference(inputs_embeds=x).logits[:, -1].numpy())
    tokens_NQ = jnp.asarray(vocab.code_ids(codes_NQ))
    close(at_once_and_one_by_one(model, jnp.asarray(state_ND), tokens_NQ), np.stack(expected, axis=1))


def test_moshi():
    cells = 4
    config = transformers.models.moshi.configuration_moshi.MoshiDepthConfig(
        vocab_size=K, audio_vocab_size=K, hidden_size=12, input_size=D, num_hidden_layers=2, num_attention_heads=3,
        ffn_dim=28, num_codebooks=cells, rms_norm_eps=1e-8, attn_implementation="sdpa", head_dim=4,
    )  # fmt: skip
    reference = transformers.models.moshi.modeling_moshi.MoshiDepthDecoder(config)
    tensors = numpy_of(reference)
    state_ND, tokens_NC = inputs(cells, K)
    with torch.no_grad():
        expected = reference(torch.tensor(tokens_NC), torch.tensor(state_ND)[:, None]).logits.numpy()

    depth = DepthConfig(
        layers=2, width=12, heads=3, kv_heads=3, head_width=4, ffn=14, norm_eps=1e-8, weights="per_codebook",
        positions="none", projection="per_codebook", final_norm=False,
    )  # fmt: skip
    model, vocab = network_of(depth, cells + 1, K + 1)  # every table has one row more, that of the first column

    def one(n: int) -> dict:
        get = lambda name: tensors[f"layers.{n}.{name}.weight"]  # noqa: E731
        up = get("mlp.fc1").reshape(cells, 2, 14, 12)
        return {
            "attention_norm__scale": get("input_layernorm"),
            "ffn_norm__scale": get("post_attention_layernorm"),
            "qkv_DHAK": heads(*(get(f"self_attn.{x}_proj.linear") for x in "qkv"), 3, 4),
            "out_HGKD": np.swapaxes(get("self_attn.o_proj.linear"), 1, 2).reshape(cells, 3, 1, 4, 12),
            "up_DCF": up.transpose(0, 3, 1, 2),
            "down_FD": np.swapaxes(get("mlp.fc2"), 1, 2),
        }

    tables = [tensors["text_embed_tokens.weight"], *(tensors[f"embed_tokens.{q}.weight"] for q in range(cells - 1))]
    output_CdK = np.swapaxes(tensors["lm_heads.weight"], 1, 2)
    put(
        model.depth,
        project_PDd=np.swapaxes(tensors["input_projections.weight"], 1, 2),
        embedding_Rd=np.concatenate(tables),
        output_CdK=np.pad(output_CdK, ((0, 0), (0, 0), (0, 1))),
        **of_layers(2, one),
    )
    tokens_NS = np.concatenate([tokens_NC, 0 * tokens_NC[:, :1]], axis=1)
    found = at_once_and_one_by_one(model, jnp.asarray(state_ND), jnp.asarray(vocab.code_ids(tokens_NS)))
    close([x[..., :K] for x in found], expected)


@pytest.mark.skipif(not FIXTURES.is_dir(), reason="the files of kyutai-labs/moshi are not there (moshi/tests/assets)")
def test_a_whole_moshi_of_its_authors():
    """A text stream and three codebooks with delays 0, 1, 2, 4: both layers of logits and which of them count."""
    tensors, codes, out = (
        files.read_safetensors(FIXTURES / f"test_lm_{name}.safetensors")[0] for name in ("model", "codes", "out")
    )
    codes_BST = np.asarray(codes["codes"])
    batch, streams, T = codes_BST.shape
    delays, initial = (0, 1, 2, 4), (48, 32, 32, 32)
    sets = [0, 1, 1]
    depth = DepthConfig(
        layers=2, width=16, heads=1, kv_heads=1, head_width=16, ffn=10, norm="layernorm", norm_eps=1e-5,
        weights="per_codebook", schedule=tuple(sets), positions="learned", projection="per_codebook", final_norm=False,
    )  # fmt: skip
    config = ModelConfig(
        layers=2, width=16, heads=1, kv_heads=1, head_width=16, ffn=16, norm="layernorm", norm_eps=1e-5, mlp="exact",
        positions="sinusoidal", window=4, depth=depth,
    )  # fmt: skip
    vocab = Vocab(streams, (49, 33, 33, 33), T)
    model = language_model(config, vocab, nnx.Rngs(0))

    def attention(n: int, part: str, parts: int) -> tuple[np.ndarray, np.ndarray]:
        qkv = tensors[f"{part}.layers.{n}.self_attn.in_proj_weight"].reshape(parts, 3, 16, 16)
        back = tensors[f"{part}.layers.{n}.self_attn.out_proj.weight"].reshape(parts, 16, 16)
        return heads(qkv[:, 0], qkv[:, 1], qkv[:, 2], 1, 16), np.swapaxes(back, 1, 2).reshape(parts, 1, 1, 16, 16)

    def norms(n: int, part: str) -> dict:
        names = {"attention_norm": "norm1", "ffn_norm": "norm2"}
        return {
            f"{ours}__{leaf}": tensors[f"{part}.layers.{n}.{theirs}.{name}"]
            for ours, theirs in names.items()
            for leaf, name in (("scale", "weight"), ("bias", "bias"))
        }

    def backbone(n: int) -> dict:
        qkv, back = (x[0] for x in attention(n, "transformer", 1))
        up, down = (tensors[f"transformer.layers.{n}.linear{x}.weight"].T for x in (1, 2))
        return norms(n, "transformer") | {"qkv_DHAK": qkv, "out_HGKD": back, "up_DCF": up[:, None], "down_FD": down}

    def small(n: int) -> dict:
        qkv, back = attention(n, "depformer", 2)
        gating = [
            [tensors[f"depformer.layers.{n}.gating.{w}.linear_{x}.weight"].T for x in ("in", "out")] for w in (0, 1)
        ]
        up, down = (np.stack(x) for x in zip(*gating, strict=True))
        matrices = {"qkv_DHAK": qkv, "out_HGKD": back, "up_DCF": up.reshape(2, 16, 2, 10), "down_FD": down}
        return norms(n, "depformer") | matrices

    def low_rank(name: str) -> np.ndarray:
        return tensors[f"{name}.weight"] @ tensors[f"{name}.low_rank.weight"].T

    table_VD = np.zeros(model.embedding_VD.shape, np.float32)
    rows = np.concatenate([tensors["text_emb.weight"], *(tensors[f"emb.{q}.weight"] for q in range(3))])
    table_VD[vocab.code_start :][: len(rows)] = rows
    first_DV = np.zeros(model.unembedding_DV.shape, np.float32)
    first_DV[:, vocab.code_start :][:, :48] = tensors["text_linear.weight"].T
    put(model, embedding_VD=table_VD, unembedding_DV=first_DV, **of_layers(2, backbone))
    put(model, norm__scale=tensors["out_norm.weight"], norm__bias=tensors["out_norm.bias"])
    outputs = np.stack([tensors[f"linears.{q}.weight"].T for q in range(3)])
    put(
        model.depth,
        positions_nd=sinusoids(jnp.arange(3), 16),  # of its authors' small model; Moshi itself has none
        project_PDd=np.stack([tensors[f"depformer_in.{w}.weight"].T for w in sets]),
        embedding_Rd=np.concatenate(
            [low_rank("depformer_text_emb"), *(low_rank(f"depformer_emb.{q}") for q in (0, 1))]
        ),
        output_CdK=np.pad(outputs, ((0, 0), (0, 0), (0, vocab.largest_codebook - 32))),
        **of_layers(2, small),
    )

    column_BST = np.stack(
        [
            np.concatenate([np.full((batch, d), fill), codes_BST[:, s, : T - d]], axis=1)
            for s, (d, fill) in enumerate(zip(delays, initial, strict=True))
        ],
        axis=1,
    )
    first_BS1 = np.broadcast_to(np.array(initial)[:, None], (batch, streams, 1))
    ids_BTS = np.concatenate([first_BS1, column_BST], axis=2).transpose(0, 2, 1)
    tokens_BTS = np.where(ids_BTS < 0, 0, vocab.code_offsets + ids_BTS).astype(np.int32)
    position_BT = np.broadcast_to(np.arange(T, dtype=np.int32), (batch, T))

    @jax.jit
    def forward(tokens_BTS):
        hidden_BTD = model(tokens_BTS[:, :-1], position_BT, jnp.ones_like(position_BT))
        text = model.logits(hidden_BTD)[..., vocab.code_start :][..., :48]
        states = model.depth(hidden_BTD.reshape(-1, 16), tokens_BTS[:, 1:, :-1].reshape(-1, streams - 1))
        return text, model.depth.logits(states).reshape(batch, T, streams - 1, -1)[..., :32]

    text_BTK, audio_BTSK = map(np.asarray, forward(jnp.asarray(tokens_BTS)))
    np.testing.assert_allclose(text_BTK, out["text_logits"][:, 0], atol=1e-5)
    np.testing.assert_array_equal(out["text_mask"][:, 0], codes_BST[:, 0] >= 0)
    for s, d in enumerate(delays[1:], start=1):
        predicted = np.zeros((batch, T), bool)
        predicted[:, : T - d] = codes_BST[:, s, : T - d] >= 0
        np.testing.assert_array_equal(out["mask"][:, s - 1], predicted)
        found = audio_BTSK[:, d:, s - 1]
        expected = np.asarray(out["logits"])[:, s - 1, : T - d]
        np.testing.assert_allclose(found[predicted[:, : T - d]], expected[predicted[:, : T - d]], atol=1e-5)
