"""The 12 Hz tokenizer of Qwen3-TTS against a second reading of its decoder, in torch and by published names, against
Mimi, whose encoder it has, and what its configuration may not say. Rows, streams and files: published_test.py."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from audiolm_jax import codecs
from audiolm_jax.errors import InputError
from tests.helpers.published_codecs import CONFIGS, sound, write

C = CONFIGS["qwen3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("qwen3")
    write(path, "qwen3")
    return path


@pytest.fixture(scope="module")
def codec(folder):
    return codecs.load("qwen3", folder)


@pytest.fixture(scope="module")
def codes(codec):
    return codec.encode(sound(4, 40 * codec.hop))


def reference(tensors, codes_TQ):
    """The waveform of a grid by the tensors of a file, the whole at once, written down anew."""
    torch = pytest.importorskip("torch", reason="the reference needs torch: pip install 'audiolm-jax[parity]'")
    functional = torch.nn.functional
    w = {name.removeprefix("decoder."): torch.tensor(x).double() for name, x in tensors.items() if "decoder." in name}
    c = C.decoder

    def conv(x_CT, name, dilation=1, groups=1):
        weight = w[f"{name}.conv.weight"]
        x_CT = functional.pad(x_CT, ((weight.shape[-1] - 1) * dilation, 0))
        return functional.conv1d(x_CT[None], weight, w[f"{name}.conv.bias"], dilation=dilation, groups=groups)[0]

    def up(x_CT, name, stride):
        y = functional.conv_transpose1d(x_CT[None], w[f"{name}.conv.weight"], w[f"{name}.conv.bias"], stride=stride)
        return y[0, :, : x_CT.shape[1] * stride]

    def snake(x_CT, name):
        alpha, beta = (w[f"{name}.{part}"].exp()[:, None] for part in ("alpha", "beta"))
        return x_CT + torch.sin(alpha * x_CT) ** 2 / beta

    def linear(x_TD, name):
        bias = w.get(f"{name}.bias")
        return x_TD @ w[f"{name}.weight"].T + (0 if bias is None else bias)

    def norm(x_TD, name):
        return x_TD * (x_TD.square().mean(-1, keepdim=True) + c.rms_norm_eps) ** -0.5 * w[f"{name}.weight"]

    def turned(x_HTK):
        half = c.head_dim // 2
        angle = torch.arange(x_HTK.shape[1])[:, None] * c.rope_theta ** (-torch.arange(half) / half)
        a, b = x_HTK[..., :half], x_HTK[..., half:]
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], dim=-1)

    def attention(x_TD, name):
        q, k, v = (linear(x_TD, f"{name}.{p}_proj").unflatten(-1, (-1, c.head_dim)).transpose(0, 1) for p in "qkv")
        group = c.num_attention_heads // c.num_key_value_heads
        k, v = (x.repeat_interleave(group, dim=0) for x in (turned(k), v))
        scores = turned(q) @ k.transpose(1, 2) / c.head_dim**0.5
        ago = torch.arange(len(x_TD))[:, None] - torch.arange(len(x_TD))
        scores[:, (ago < 0) | (ago >= c.sliding_window)] = -torch.inf
        return linear((scores.softmax(-1) @ v).transpose(0, 1).flatten(1), f"{name}.o_proj")

    def rows(name, codes_T):
        return (w[f"{name}.embedding_sum"] / w[f"{name}.cluster_usage"][:, None])[codes_T].T

    codes = torch.tensor(codes_TQ).long()
    first = rows("quantizer.rvq_first.vq.layers.0._codebook", codes[:, 0])
    rest = sum(rows(f"quantizer.rvq_rest.vq.layers.{q}._codebook", codes[:, q + 1]) for q in range(codes.shape[1] - 1))
    x = sum(w[f"quantizer.rvq_{n}.output_proj.weight"][..., 0] @ y for n, y in (("first", first), ("rest", rest)))
    x = linear(conv(x, "pre_conv").T, "pre_transformer.input_proj")
    for n in range(c.num_hidden_layers):
        name = f"pre_transformer.layers.{n}"
        y = attention(norm(x, f"{name}.input_layernorm"), f"{name}.self_attn")
        x = x + w[f"{name}.self_attn_layer_scale.scale"] * y
        y = norm(x, f"{name}.post_attention_layernorm")
        y = functional.silu(linear(y, f"{name}.mlp.gate_proj")) * linear(y, f"{name}.mlp.up_proj")
        x = x + w[f"{name}.mlp_layer_scale.scale"] * linear(y, f"{name}.mlp.down_proj")
    x = linear(norm(x, "pre_transformer.norm"), "pre_transformer.output_proj").T
    for n, ratio in enumerate(c.upsampling_ratios):
        x, name = up(x, f"upsample.{n}.0", ratio), f"upsample.{n}.1"
        y = conv(x, f"{name}.dwconv", groups=len(x)).T
        y = functional.layer_norm(y, y.shape[-1:], w[f"{name}.norm.weight"], w[f"{name}.norm.bias"], 1e-6)
        y = linear(functional.gelu(linear(y, f"{name}.pwconv1")), f"{name}.pwconv2")
        x = x + (w[f"{name}.gamma"] * y).T
    x = conv(x, "decoder.0")
    for n, stride in enumerate(c.upsample_rates, 1):
        x = up(snake(x, f"decoder.{n}.block.0"), f"decoder.{n}.block.1", stride)
        for unit, dilation in enumerate((1, 3, 9), 2):
            name = f"decoder.{n}.block.{unit}"
            y = conv(snake(x, f"{name}.act1"), f"{name}.conv1", dilation)
            x = x + conv(snake(y, f"{name}.act2"), f"{name}.conv2")
    end = len(c.upsample_rates) + 1
    return conv(snake(x, f"decoder.{end}"), f"decoder.{end + 1}")[0].clamp(-1, 1).numpy()


def test_the_decoder_equals_a_second_reading(folder, codec, codes):
    expected = reference(load_file(folder / "model.safetensors"), codes)
    assert expected.std() > 0.05 and len(codes) > 4 * C.decoder.sliding_window
    np.testing.assert_allclose(codec.decode(codes), expected, atol=1e-5)


def test_pieces_after_a_short_context_are_not_the_whole(codec, codes):
    """The reference's way with long codes: each piece starts anew a few frames before it. A stream here does not."""
    whole, size, context, state, stream = codec.decode(codes), 10, 4, codec.decode_init(1), []
    pieces = [whole[: size * codec.hop]]
    for start in range(0, len(codes), size):
        if start:
            piece = codec.decode(codes[start - context : start + size])
            pieces.append(piece[context * codec.hop :])
        chunk, state = codec.decode_step(state, codes[None, start : start + size])
        stream.append(chunk[0])
    assert np.abs(np.concatenate(pieces) - whole).max() > 0.01
    np.testing.assert_allclose(np.concatenate(stream), whole, atol=2e-6)


def test_the_encoder_is_that_of_mimi(folder, codec, codes, tmp_path):
    """The first of its codebooks, by the codec `mimi`, which is held against `transformers`."""
    write(tmp_path, "mimi", C.encoder)
    tensors = load_file(folder / "model.safetensors")
    encoder = {name.removeprefix("encoder."): x for name, x in tensors.items() if name.startswith("encoder.")}
    save_file(load_file(tmp_path / "model.safetensors") | encoder, tmp_path / "model.safetensors")
    theirs = codecs.load("mimi", tmp_path).encode(sound(4, 40 * codec.hop))
    assert theirs.shape[1] == C.encoder.num_quantizers > C.codebooks
    np.testing.assert_array_equal(theirs[:, : C.codebooks], codes)


def test_the_published_sizes():
    about = codecs.about("qwen3", "Qwen/Qwen3-TTS-Tokenizer-12Hz@main")
    assert (about.sample_rate, about.hop, about.frame_rate) == (24000, 1920, 12.5)
    assert (about.codebooks, about.codebook_size) == (16, 2048)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "mimi"}, "'mimi'; 'qwen3_tts_tokenizer_12hz' is needed"),
        ({"encoder_config": 3}, "encoder_config=3; an object is needed"),
        ({"encoder_valid_num_quantizers": 4}, "codebooks 4 of the encoder and 3 of the decoder must be equal"),
        ({"output_sample_rate": 24000}, r"output_sample_rate.: 24000} where the encoder has sampling_rate=1200"),
        ({"decoder": {"upsample_rates": [3, 3]}}, "samples per frame 12 of the encoder and 18 of the decoder"),
        ({"decoder": {"num_quantizers": 5}, "encoder_valid_num_quantizers": 5}, "from 2 to the num_quantizers=4"),
        ({"decoder": {"codebook_size": 16}}, "codebook_size 32 of the encoder and 16 of the decoder"),
        ({"decoder": {"hidden_act": "swish"}}, "hidden_act='swish' is not supported"),
        ({"encoder": {"num_semantic_quantizers": 2}}, "num_semantic_quantizers=2 is not supported"),
        ({"decoder": {"num_hidden_layers": 3}}, "decoder.pre_transformer.layers.2.input_layernorm.weight is missing"),
    ],
)
def test_configurations_that_do_not_fit_are_one_sentence(folder, tmp_path, changes, words):
    fields = json.loads((folder / "config.json").read_text())
    for part in ("encoder", "decoder"):
        fields[f"{part}_config"].update(changes.get(part, {}))
    fields |= {name: value for name, value in changes.items() if name not in ("encoder", "decoder")}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(InputError, match=words) as caught:
        codecs.load("qwen3", tmp_path)
    assert "\n" not in str(caught.value)
