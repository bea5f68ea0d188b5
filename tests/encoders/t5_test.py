"""The T5 encoder against `transformers` on random weights of odd small sizes, and its tokenizer."""

import json
import warnings

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from audiolm_jax.codecs.streaming import own_mesh
from audiolm_jax.encoders import t5
from audiolm_jax.errors import InputError
from audiolm_jax.hub.weights import Weights
from experiments.colab.random_musicgen import tokenizer

torch = pytest.importorskip("torch", reason="the reference needs torch: pip install 'audiolm-jax[parity]'")
transformers = pytest.importorskip("transformers", reason="pip install 'audiolm-jax[parity]'")

SMALL = {"vocab_size": 40, "d_model": 20, "d_kv": 6, "d_ff": 28, "num_layers": 3, "num_heads": 5}
SIZES = {
    "relu": {**SMALL, "relative_attention_num_buckets": 12, "relative_attention_max_distance": 20},
    "gated-gelu": {**SMALL, "d_kv": 4, "feed_forward_proj": "gated-gelu", "layer_norm_epsilon": 1e-3},
}
BASE = {"d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12}  # t5-base, the text encoder of MusicGen


def reference(sizes, seed=0, born=False):
    """born: weights as they are at birth. Twelve layers of larger ones amplify what float32 rounds: torch's states then
    differ from its own in float64 by 1e-3."""
    torch.manual_seed(seed)
    model = transformers.T5EncoderModel(transformers.T5Config(**sizes)).eval()
    wide = sizes["d_model"] ** -0.5
    with torch.no_grad():
        for parameter in () if born else model.parameters():  # larger scores than at birth: positions and masks decide
            parameter.mul_(1.5).add_(0.4 * wide * torch.randn_like(parameter))
    return model


def read(folder):
    return Weights(folder / "model.safetensors", load_file(folder / "model.safetensors"))


def check(sizes, folder, lengths, born=False):
    theirs = reference(sizes, born=born)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs.save_pretrained(folder)
    weights, config = read(folder), t5.T5Config(**sizes)
    ours = t5.take(config, weights)
    weights.finish()
    ids = np.random.default_rng(1).integers(1, config.vocab_size, (len(lengths), max(lengths)))
    valid = np.arange(max(lengths)) < np.array(lengths)[:, None]
    with torch.no_grad():
        expected = theirs(torch.tensor(ids), attention_mask=torch.tensor(valid).long()).last_hidden_state.numpy()
    with own_mesh():
        got = np.asarray(jax.jit(lambda ids, valid: ours(ids, valid))(ids, valid))
    for b, n in enumerate(lengths):
        np.testing.assert_allclose(got[b, :n], expected[b, :n], atol=1e-4)
    return ours, expected


@pytest.mark.parametrize("kind", list(SIZES))
def test_small_encoders_equal_the_reference(kind, tmp_path):
    ours, expected = check(SIZES[kind], tmp_path, [50, 1, 17])
    assert expected.std() > 0.3
    saved = t5.tensors_of(ours)
    original = load_file(tmp_path / "model.safetensors")
    assert saved.keys() == original.keys()
    for name, tensor in original.items():
        np.testing.assert_array_equal(saved[name], tensor)
    # Written under its other name alone, the table is found too.
    saved["encoder.embed_tokens.weight"] = saved.pop("shared.weight")
    save_file(saved, tmp_path / "model.safetensors")
    weights = read(tmp_path)
    again = t5.take(ours.config, weights)
    weights.finish()
    np.testing.assert_array_equal(again.embedding.weight[...], ours.embedding.weight[...])


@pytest.mark.slow
def test_the_published_size_equals_the_reference(tmp_path):
    check(BASE, tmp_path, [130, 3], born=True)


def test_buckets_are_those_of_the_reference():
    distance = np.arange(-600, 601)
    for count, furthest in ((32, 128), (12, 20), (8, 64), (64, 500), (32, 100)):
        bucket = transformers.models.t5.modeling_t5.T5Attention._relative_position_bucket
        expected = bucket(torch.tensor(distance), num_buckets=count, max_distance=furthest).numpy()
        np.testing.assert_array_equal(t5.buckets(distance, count, furthest), expected)


def test_texts_of_unequal_lengths_equal_each_alone(tmp_path):
    tokenizer(tmp_path / t5.TOKENIZER)
    config = t5.T5Config(**SIZES["relu"])
    weights = Weights(tmp_path, {name: p.detach().numpy() for name, p in reference(SIZES["relu"]).named_parameters()})
    encode = t5.TextEncoder(t5.take(config, weights), t5.read_tokenizer(tmp_path / t5.TOKENIZER))
    texts = ["rock", "", "slow jazz with a loud piano " * 4]
    together = encode(texts)
    assert [len(states) for states in together] == [2, 0, 25]  # a token for every word, and the end
    for text, states in zip(texts, together, strict=True):
        np.testing.assert_allclose(encode([text])[0], states, atol=1e-5)
    with pytest.raises(InputError, match="tokenizer"):
        t5.TextEncoder(t5.take(t5.T5Config(**{**SIZES["relu"], "vocab_size": 3}), weights), encode.tokenizer)(["rock"])


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        t5.read_tokenizer(tmp_path / t5.TOKENIZER)
    (tmp_path / t5.TOKENIZER).write_text('{"version": "1.0"')
    with pytest.raises(InputError, match="cannot be read as a tokenizer"):
        t5.read_tokenizer(tmp_path / t5.TOKENIZER)
    tokenizer(tmp_path / t5.TOKENIZER)  # its end of text is a token that it does not have: the library panics
    saved = json.loads((tmp_path / t5.TOKENIZER).read_text())
    saved["post_processor"]["special_tokens"] = {}
    (tmp_path / t5.TOKENIZER).write_text(json.dumps(saved))
    with pytest.raises(InputError, match="cannot be read as a tokenizer"):
        t5.read_tokenizer(tmp_path / t5.TOKENIZER)
    with pytest.raises(InputError, match="feed_forward_proj='gated-silu'"):
        t5.T5Config(feed_forward_proj="gated-silu")
