"""Published codecs by themselves: lengths, rows, streams, files. Against references: parity_test.py, qwen3_test.py."""

import contextlib
import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import HealthCheck, given, settings, strategies
from safetensors.numpy import load_file, save_file

from audiolm_jax import codecs, serialization
from audiolm_jax.errors import InputError
from audiolm_jax.hub.weights import fold
from audiolm_jax.model.config import ModelConfig
from audiolm_jax.model.spec import Spec
from audiolm_jax.model.transformer import Transformer
from audiolm_jax.sampling import SamplingConfig, generator
from audiolm_jax.serialization.vocab import Vocab
from tests.helpers.published_codecs import CONFIGS, save, sound, write


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """{name: (module, folder)} of all small codecs."""
    root = tmp_path_factory.mktemp("published")
    return {name: (write(root / name, name), root / name) for name in CONFIGS}


@pytest.fixture(scope="module")
def opened(folders):
    return {name: codecs.load(kind, folder) for name, (kind, folder) in folders.items()}


@pytest.fixture(params=list(CONFIGS))
def codec(request, opened):
    return opened[request.param]


def audio(codec, rows, samples, seed=0):
    return sound(seed, *((rows, samples) if codec.channels == 1 else (rows, 2, samples)))


def test_codes_are_many_and_lengths_exact(codec):
    for samples in (1, codec.hop - 1, codec.hop, codec.hop + 1, 90 * codec.hop + 5):
        codes = codec.encode(audio(codec, 1, samples))
        assert codes.shape == (1, codec.frames(samples), codec.codebooks) and codes.dtype == np.int32
        assert codec.decode(codes).shape[-1] == codec.samples(codes.shape[1]) >= samples
    assert all(len(np.unique(codes[..., q])) > 5 for q in range(codec.codebooks))
    waveform = codec.decode(codes)
    assert waveform.dtype == np.float32 and np.isfinite(waveform).all() and 0.01 < np.abs(waveform).max() <= 1


def test_a_row_of_unequal_lengths_equals_the_row_alone(codec):
    for lengths in ((90 * codec.hop + 1, 3), (33 * codec.hop - 1, 40 * codec.hop), (7 * codec.hop + 2, codec.hop)):
        rows = [audio(codec, 1, n, seed)[0] for seed, n in enumerate(lengths)]
        longest = max(lengths)
        batch = np.stack([np.pad(r, [(0, 0)] * (r.ndim - 1) + [(0, longest - r.shape[-1])], "edge") for r in rows])
        codes = codec.encode(batch, lengths)
        waveforms = codec.decode(codes, [codec.frames(n) for n in lengths])
        for row, found, waveform in zip(rows, codes, waveforms, strict=True):
            alone = codec.encode(row)
            np.testing.assert_array_equal(found[: len(alone)], alone)
            assert not found[len(alone) :].any()
            expected = codec.decode(alone)
            np.testing.assert_allclose(waveform[..., : expected.shape[-1]], expected, atol=1e-5)
            assert not waveform[..., expected.shape[-1] :].any()


@given(strategies.data())
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_streaming_in_any_chunks_is_the_whole(codec, data):
    """Random lengths and chunks, the last frame not whole: the codes are the same, the waveform up to rounding."""
    frames = data.draw(strategies.integers(1, 120))
    rest = data.draw(strategies.integers(0, codec.hop - 1))
    source = audio(codec, 2, frames * codec.hop + rest, frames)
    codes = codec.encode(source)
    waveform = codec.decode(codes)
    sizes = strategies.integers(1, 50)
    state, pieces, at = codec.encode_init(2), [], 0
    while at < frames:
        size = min(data.draw(sizes), frames - at)
        piece, state = codec.encode_step(state, source[..., at * codec.hop : (at + size) * codec.hop])
        pieces.append(piece)
        at += size
    end = codec.encode_end(state, source[..., frames * codec.hop :] if rest else None)
    pieces += [] if end is None else [end]
    np.testing.assert_array_equal(np.concatenate(pieces, axis=1), codes)
    state, pieces, at = codec.decode_init(2), [], 0
    while at < codes.shape[1]:
        size = min(data.draw(sizes), codes.shape[1] - at)
        piece, state = codec.decode_step(state, codes[:, at : at + size])
        pieces.append(piece)
        at += size
    end = codec.decode_end(state)
    pieces += [] if end is None else [end]
    np.testing.assert_allclose(np.concatenate(pieces, axis=-1), waveform, atol=1e-5)


def test_how_soon_a_stream_begins(opened):
    """Frames that go in before the first audio comes out: one, seven (reflection), what the convolutions look ahead."""
    first = {}
    for name, codec in opened.items():
        codes = codec.encode(audio(codec, 1, 200 * codec.hop))
        state = codec.decode_init(1)
        for count in range(1, 100):
            piece, state = codec.decode_step(state, codes[:, count - 1 : count])
            if piece.size:
                first[name] = count
                break
    assert first["mimi"] == first["qwen3"] == 1
    assert first["encodec"] == CONFIGS["encodec"].start == 5
    assert first["encodec-chunks"] == opened["encodec-chunks"].block


def test_causal_codecs_do_not_look_ahead(opened):
    for name, start in (("mimi", 0), ("qwen3", 0), ("encodec", 5)):
        codec = opened[name]
        source = audio(codec, 1, 60 * codec.hop)[0]
        other = source.copy()
        other[30 * codec.hop :] = audio(codec, 1, 60 * codec.hop, seed=5)[0][30 * codec.hop :]
        assert start < 30
        np.testing.assert_array_equal(codec.encode(source)[:30], codec.encode(other)[:30])
        assert (codec.encode(source)[30:] != codec.encode(other)[30:]).any()


@pytest.mark.parametrize("name", ["mimi", *(pytest.param(n, marks=pytest.mark.slow) for n in CONFIGS if n != "mimi")])
def test_leading_codebooks_suffice(folders, opened, name):
    kind, folder = folders[name]
    whole, part = opened[name], codecs.load(kind, folder, codebooks=2)
    codes = whole.encode(audio(whole, 1, 5 * whole.hop))
    np.testing.assert_array_equal(part.encode(audio(part, 1, 5 * part.hop)), codes[..., :2])
    np.testing.assert_allclose(part.decode(codes[..., :2]), whole.decode(codes[..., :2]), atol=1e-6)
    assert np.abs(whole.decode(codes[..., :2]) - whole.decode(codes)).max() > 1e-3
    assert part.fingerprint == whole.fingerprint


def test_loudness_goes_beside_the_codes(opened):
    codec = opened["encodec-chunks"]
    source = audio(codec, 1, 5 * codec.stride)
    codes, scales = codec.encode_scaled(source)
    loud, loud_scales = codec.encode_scaled(source * 3)
    np.testing.assert_array_equal(codes, loud)
    np.testing.assert_allclose(loud_scales, scales * 3, rtol=1e-4)
    quiet = codec.decode(codes, scales_BC=scales * 0.1)
    np.testing.assert_allclose(codec.decode(codes, scales_BC=scales * 0.2), quiet * 2, rtol=1e-4, atol=1e-6)


def test_weights_come_back_as_they_were(folders, tmp_path):
    for name, (kind, folder) in folders.items():
        codec = codecs.load(kind, folder)
        save(tmp_path / name, *codec.config)
        again = codecs.load(kind, tmp_path / name)
        ours, theirs = load_file(tmp_path / name / "model.safetensors"), load_file(folder / "model.safetensors")
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[key], theirs[key]) for key in ours)
        assert again.fingerprint == codec.fingerprint


@pytest.mark.parametrize("scheme", ["weight_g", "parametrizations.weight.original0"])
def test_weight_norm_is_folded(folders, tmp_path, scheme):
    """w = g v / |v| over all axes but the first, in both of torch's naming schemes."""
    kind, folder = folders["encodec"]
    tensors = fold(load_file(folder / "model.safetensors"))
    other = scheme.replace("weight_g", "weight_v").replace("original0", "original1")
    split = {}
    for name, tensor in tensors.items():
        if name.endswith("conv.weight"):
            base, norm = name.removesuffix("weight"), np.sqrt((tensor**2).sum((1, 2), keepdims=True))
            split |= {base + scheme: norm, base + other: np.float32(7) * tensor}
        else:
            split[name] = tensor
    save_file(split, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    a, b = codecs.load(kind, folder), codecs.load(kind, tmp_path)
    codes = a.encode(audio(a, 1, 300))
    np.testing.assert_allclose(a.decode(codes), b.decode(codes), atol=1e-5)


def test_files_that_cannot_be_used_are_one_sentence(folders, tmp_path):
    kind, folder = folders["mimi"]
    config, weights = json.loads((folder / "config.json").read_text()), (folder / "model.safetensors").read_bytes()
    tensors = load_file(folder / "model.safetensors")

    def place(name: str, config=config, weights: bytes | dict = weights, file="model.safetensors"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
        if isinstance(weights, dict):
            save_file(weights, tmp_path / name / file)
        else:
            (tmp_path / name / file).write_bytes(weights)
        return tmp_path / name

    missing = {k: v for k, v in tensors.items() if "k_proj" not in k}
    wrong = missing | {"downsample.conv.weight": np.zeros((2, 2, 2), np.float32), "extra": np.zeros(3, np.float32)}
    broken = tensors | {"downsample.conv.weight": tensors["downsample.conv.weight"] * np.nan}
    for path, *words in (
        (place("cut", weights=weights[:-100]), "model.safetensors", "truncated"),
        (place("short", weights=weights[:20]), "truncated"),
        (place("json", config="{"), "config.json", "JSON"),
        (place("model", config=config | {"model_type": "dac"}), "'dac'", "'mimi'"),
        (place("values", config=config | {"pad_mode": "circular"}), "pad_mode", "circular"),
        (place("types", config=config | {"upsampling_ratios": 7}), "config.json"),
        (place("tensors", weights=wrong), "k_proj.weight is missing", "(2, 2, 2) where", "extra is unexpected"),
        (place("nan", weights=broken), "downsample.conv.weight holds NaN"),
        (
            place("pickle", file="pytorch_model.bin"),
            "pytorch_model.bin is a pickle",
            "model.safetensors does not exist",
        ),
        (place("bin", file="a.bin") / "a.bin", "not a safetensors file"),
        (tmp_path / "nowhere" / "model.safetensors", "does not exist"),
        ("some/where/else", "no folder, no safetensors file and no repository"),
        ("kyutai/mimi", "names no revision", "@main"),
        (None, "ships with no weights", "kyutai/mimi"),
    ):
        with pytest.raises(InputError) as caught:
            codecs.load(kind, path)
        said = str(caught.value)
        assert all(word in said for word in words), (path, said)
        assert "\n" not in said


def test_a_repository_without_a_network_says_what_to_place_where(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"config.json of kyutai/none@abc could not be downloaded .* put config.json"):
        codecs.load("mimi", "kyutai/none@abc")


def test_sound_that_cannot_be_encoded_is_one_sentence(codec):
    good = audio(codec, 1, 40)
    for call, words in (
        (lambda: codec.encode(good * np.nan), "NaN"),
        (lambda: codec.encode(good[..., :0]), "no samples"),
        (lambda: codec.encode(good.astype(np.int16)), "int16"),
        (lambda: codec.encode(np.zeros((1, 6, 40), np.float32)), "6"),
        (lambda: codec.encode(good, [41]), "1 to 40"),
        (lambda: codec.encode(good, [0]), "1 to 40"),
        (lambda: codec.decode(np.full((1, 3, 1), 99)), "out of range"),
        (lambda: codec.decode(np.zeros((1, 3, 1), int), [4]), "1 to 3"),
        (lambda: codec.encode_step(codec.encode_init(1), good[..., : codec.hop + 1]), "multiple"),
    ):
        with pytest.raises(InputError, match=words):
            call()


@contextlib.contextmanager
def compilations():
    """The names of the programs compiled inside."""
    found = []

    def listen(event, seconds, fun_name="", **_):
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize("name", ["encodec", "dac"])
def test_one_compilation_per_size_of_a_piece(tmp_path, name):
    """However long a signal is, and whether it comes whole or in chunks, what comes first and what comes later."""
    width = {"encodec": "num_filters", "dac": "encoder_hidden_size"}[name]
    kind = write(tmp_path, name, dataclasses.replace(CONFIGS[name], **{width: 6}))  # that no other test has compiled
    codec = codecs.load(kind, tmp_path)
    stages = [*codec._encoder, *codec._decoder]
    with compilations() as first:
        for frames in (1, 7, 30, 39, 47, 55, 60, 75, 90, 100, 120, 161, 200):
            codec.decode(codec.encode(audio(codec, 1, frames * codec.hop)))
    assert len(first) == sum(len(stage.sizes) for stage in stages)
    with compilations() as later:
        for frames in (2, 20, 31, 57, 90, 111, 300):
            codec.decode(codec.encode(audio(codec, 1, frames * codec.hop - 1)))
        state = codec.decode_init(1)
        for codes in np.split(codec.encode(audio(codec, 1, 120 * codec.hop))[:, :120], (1, 2, 50), axis=1):
            _, state = codec.decode_step(state, codes)
        codec.decode_end(state)
    assert later == []


@pytest.mark.parametrize("name", ["encodec", "mimi", pytest.param("dac", marks=pytest.mark.slow)])
def test_first_audio_leaves_before_the_last_code_exists(opened, name):
    codec = opened[name]
    vocab = Vocab(codec.codebooks, codec.codebook_size, 120)
    config = ModelConfig(layers=1, width=16, heads=1, kv_heads=1, head_width=16, ffn=16)
    spec = Spec(config, vocab, serialization.SerializationConfig(strategy="delay"))
    model = Transformer(config, vocab.size, nnx.Rngs(0))
    sampling = SamplingConfig(chunk=16, max_frames=100)
    frames_made = []

    class Watched(generator.Generator):
        def progress(self, requests):
            for now in super().progress(requests):
                frames_made.append(int(now.complete_B[0]))
                yield now

    stream = Watched(model, spec, codec, sampling, context=160).stream(["one"], frames=90)
    first = next(stream)[0]
    assert first.size and frames_made[-1] < 60
    pieces, result = [first], None
    while result is None:
        try:
            pieces.append(next(stream)[0])
        except StopIteration as finished:
            [result] = finished.value
    assert frames_made[-1] == 90
    np.testing.assert_allclose(np.concatenate(pieces, axis=-1), codec.decode(result.codes_TQ), atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"chunk_length_s": None, "overlap": None, "normalize": False}, "normalises over a whole signal"),
        ({"chunk_length_s": 0.505}, "chunk_length_s=0.505 with overlap"),
        ({"chunk_length_s": 1e-9}, "chunk_length_s=1e-09"),
        ({"chunk_length_s": 1e9}, "at most 60 seconds"),
        ({"overlap": 1.0}, "overlap=1.0"),
        ({"overlap": -0.5}, "overlap=-0.5"),
    ],
)
def test_chunks_that_would_be_computed_wrong_are_refused(folders, tmp_path, changes, words):
    """`transformers` normalises an EnCodec without chunks over the whole signal, and adds up chunks that are longer
    than they say if they are no whole frames."""
    kind, folder = folders["encodec-chunks"]
    (tmp_path / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | changes))
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(InputError) as caught:
        codecs.load(kind, tmp_path)
    assert words in str(caught.value)
