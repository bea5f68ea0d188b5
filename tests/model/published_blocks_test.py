"""Blocks of published models against `transformers`, on random weights of odd sizes: Qwen3 (norms of queries and keys),
Llama 3 (scaled frequencies), Qwen2 (biases of queries, keys and values; a sliding window), Mistral (a sliding window)
and Dia (no scale of scores, cross-attention with heads of its own)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from audiolm_jax.families import table as tables
from audiolm_jax.model import attention, transformer
from audiolm_jax.model.config import ModelConfig
from audiolm_jax.model.transformer import Transformer
from audiolm_jax.serialization import cost
from tests.helpers.published_blocks import put

torch = pytest.importorskip("torch", reason="the reference needs torch: pip install 'audiolm-jax[parity]'")
transformers = pytest.importorskip("transformers", reason="pip install 'audiolm-jax[parity]'")

V, P, G = 29, 7, 9
LENGTHS = np.array([7, 3, 1])
NAMES = {"num_hidden_layers": 2, "hidden_size": 18, "num_attention_heads": 6, "num_key_value_heads": 2}
NAMES |= {"intermediate_size": 22, "vocab_size": V, "max_position_embeddings": 32}
OURS = {"layers": 2, "width": 18, "heads": 6, "kv_heads": 2, "head_width": 10, "ffn": 22, "rope_base": 300.0}
# Factor, low, high, original: of the five frequencies of a head two are kept, one is mixed, two are divided.
SCALING = (8.0, 1.0, 2.5, 64.0)
SCALED = dict(zip(("factor", "low_freq_factor", "high_freq_factor"), SCALING[:3], strict=True))
SCALED |= {"rope_type": "llama3", "original_max_position_embeddings": 64, "rope_theta": 300.0}
PLAIN = {"rope_type": "default", "rope_theta": 300.0}
SLIDING = {"use_sliding_window": True, "max_window_layers": 0, "sliding_window": 4}
# model -> (class of its configuration, what it takes, ours)
MODELS = {
    "qwen3": ("Qwen3Config", {"head_dim": 10, "rms_norm_eps": 1e-5}, {"qk_norm": True, "norm_eps": 1e-5}),
    "llama": ("LlamaConfig", {"head_dim": 10, "rope_parameters": SCALED}, {"rope_scaling": SCALING}),
    "qwen2": (
        "Qwen2Config",
        {"hidden_size": 24, **SLIDING},
        {"width": 24, "head_width": 4, "bias": "qkv", "window": 4},
    ),
    "mistral": ("MistralConfig", {"head_dim": 10, "sliding_window": 5}, {"window": 5}),
}


def noisy(model):
    """Weights larger than at birth, so that scores decide; norms and biases too."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def reference(kind):
    name, changes, ours = MODELS[kind]
    sizes = {**NAMES, "rms_norm_eps": 1e-6, "rope_parameters": PLAIN, **changes}
    torch.manual_seed(0)
    config = getattr(transformers, name)(**sizes)
    return noisy(transformers.AutoModel.from_config(config, attn_implementation="sdpa")), ModelConfig(**OURS | ours)


def ours_of(config, tensors, entries):
    """The Transformer of these tensors."""
    network = Transformer(config, V, nnx.Rngs(0))
    put(network, [*entries, tables.rmsnorm("norm", "norm", config.width)], tensors)
    rows = tensors.get("embed_tokens.weight", tensors.get("embeddings.embed.weight"))
    network.embedding_VD = nnx.Param(jnp.zeros_like(network.embedding_VD[...]).at[1 : 1 + len(rows)].set(rows))
    return network


def dia_entries(c):
    """A layer of Dia's decoder, whose attention reads the states of its encoder."""
    D, own, cross = c.width, (c.heads, c.kv_heads, c.head_width), c.cross_sizes
    entries = [tables.plain("layers/down_FD", "layers.{}.mlp.down_proj.weight", D, c.ffn)]
    entries.append(tables.into_ffn("layers/up_DCF", ["layers.{}.mlp.gate_up_proj.weight"], 2, D, c.ffn))
    for ours, theirs in (("attention_norm", "sa"), ("cross/norm", "ca"), ("ffn_norm", "mlp")):
        entries.append(tables.rmsnorm(f"layers/{ours}", f"layers.{{}}.pre_{theirs}_norm", D))
    for ours, name, parts, sizes in (
        ("qkv_DHAK", "self_attention", "qkv", own),
        ("cross/q_DHGK", "cross_attention", "q", cross),
        ("cross/kv_DHCK", "cross_attention", "kv", cross),
    ):
        names = [f"layers.{{}}.{name}.{x}_proj.weight" for x in parts]
        entries.append(tables.into_heads(f"layers/{ours}", names, parts, sizes, D))
    for ours, name, sizes in (("", "self_attention", own), ("cross/", "cross_attention", cross)):
        entries.append(tables.out_of_heads(f"layers/{ours}out_HGKD", f"layers.{{}}.{name}.o_proj.weight", sizes, D))
    return entries


def check(config, network, expected_of, ids, encoded=None, slots=G):
    """Prefill and steps of rows of different lengths, and one forward pass, against each row alone. ids: [B, P + G, S],
    from 1; expected_of: row [1, L, S] -> hidden states [L, D]."""
    whole = np.where((np.arange(P + G) < LENGTHS[:, None] + G)[..., None], ids, 0)
    place = np.tile(np.arange(P + G), (len(ids), 1))
    used = (place < LENGTHS[:, None] + G).astype(int)
    found = np.asarray(jax.jit(lambda n, e: n(whole, place, used, encoded=e))(network, encoded))
    generated = np.stack([ids[b, n : n + G] for b, n in enumerate(LENGTHS)])
    valid = place[:, :P] < LENGTHS[:, None]
    seen = None if encoded is None else encoded[1]
    prompt = np.where(valid[..., None], ids[:, :P], 0)

    @jax.jit
    def decode(network, encoded):
        hidden, prompt_cache = network.prefill(prompt, place[:, :P], valid.astype(int), encoded=encoded)

        def body(cache, i):
            tokens = jax.lax.dynamic_index_in_dim(jnp.asarray(generated), i, axis=1, keepdims=False)
            hidden, cache = network.step(tokens, LENGTHS + i, i, prompt_cache, valid, cache, seen)
            return cache, hidden

        return hidden, jax.lax.scan(body, network.init_cache(len(ids), slots), jnp.arange(G))[1]

    first, steps = map(np.asarray, decode(transformer.unstack(network), encoded))
    for b, n in enumerate(LENGTHS):
        expected = expected_of(b, ids[b : b + 1, : n + G])
        assert expected.std() > 0.3
        np.testing.assert_allclose(found[b, : n + G], expected, atol=1e-4)
        np.testing.assert_allclose(first[b, :n], expected[:n], atol=1e-4)
        np.testing.assert_allclose(steps[:, b], expected[n:], atol=1e-4)


@pytest.mark.parametrize("kind", [pytest.param(x, marks=pytest.mark.slow) if x == "mistral" else x for x in MODELS])
def test_every_position_and_step_equals_the_reference(kind):
    """With a window the cache of generated positions holds no more than the window sees."""
    theirs, config = reference(kind)
    tensors = {name: x.detach().numpy() for name, x in theirs.state_dict().items()}
    network = ours_of(config, tensors, tables.llama_block("layers", "layers.{}", config))
    assert (np.asarray(network.layers.qkv_DHAK[...]) != 0).all()

    def expected_of(_, row):
        with torch.no_grad():
            return theirs(torch.tensor(row[..., 0] - 1)).last_hidden_state[0].numpy()

    ids = np.random.default_rng(0).integers(1, 1 + V, (3, P + G, 1))
    check(config, network, expected_of, ids, slots=cost.kept(G, config.window))


def test_cross_attention_with_heads_of_its_own_equals_the_reference():
    sizes = {"head_dim": 10, "cross_num_attention_heads": 3, "cross_num_key_value_heads": 3, "cross_head_dim": 7}
    sizes |= {"cross_hidden_size": 18, "num_channels": 2, "rope_parameters": PLAIN, "norm_eps": 1e-5}
    torch.manual_seed(0)
    whole = transformers.DiaDecoderConfig(**{**NAMES, **sizes, "vocab_size": V // 2})
    whole._attn_implementation = "sdpa"
    theirs = noisy(transformers.models.dia.modeling_dia.DiaDecoder(whole))
    config = ModelConfig(
        **OURS | {"norm_eps": 1e-5, "attention_scale": 1.0},
        cross_width=18,
        cross_heads=3,
        cross_kv_heads=3,
        cross_head_width=7,
    )
    tensors = {name: x.detach().numpy() for name, x in theirs.state_dict().items()}
    network = ours_of(config, tensors, dia_entries(config))
    rng = np.random.default_rng(0)
    states, count = rng.normal(size=(3, 5, 18)).astype(np.float32), np.array([5, 2, 4])
    codes = rng.integers(0, V // 2, (3, P + G, 2))

    def expected_of(b, row):
        alone = torch.tensor(states[b : b + 1, : count[b]])
        with torch.no_grad():
            found = theirs(torch.tensor(row - 1 - np.arange(2) * (V // 2)), encoder_hidden_states=alone)
        return found.last_hidden_state[0].numpy()

    ids = 1 + codes + np.arange(2) * (V // 2)
    check(config, network, expected_of, ids, (states, np.arange(5) < count[:, None]))


@pytest.mark.parametrize(
    ("width", "rewritten"), [(64, (32.0, 0.125, 0.5, 1024.0)), (128, (32.0, 0.001953125, 0.0078125, 16.0))]
)
def test_scaled_frequencies_are_those_of_the_reference(width, rewritten):
    """CSM-1b's, of its backbone and its depth decoder: as Llama 3.2 has them, and as they are published for the lengths
    of their own rows."""
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    parameters = {"rope_type": "llama3", "rope_theta": 5e5, **dict(zip(names, rewritten, strict=True))}
    config = transformers.LlamaConfig(head_dim=width, rope_parameters=parameters, max_position_embeddings=2048)
    expected, _ = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain_K = 5e5 ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    for one in ((32.0, 1.0, 4.0, 8192.0), rewritten):
        found_K = attention.rescaled(plain_K, *one)
        np.testing.assert_allclose(found_K, expected.numpy(), rtol=1e-6)
        ratio_K = np.asarray(plain_K / found_K).round(3)
        assert ratio_K.min() == 1 and ratio_K.max() == 32 and len(np.unique(ratio_K)) > 3
        cos, sin = attention.rope_table(jnp.arange(4), width, 5e5, one)
        np.testing.assert_allclose(cos[3], np.cos(3 * expected.numpy()), atol=1e-6)
        np.testing.assert_allclose(sin[3], np.sin(3 * expected.numpy()), atol=1e-6)
