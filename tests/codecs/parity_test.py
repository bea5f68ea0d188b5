"""EnCodec, DAC and Mimi against `transformers` (torch on the CPU): random weights of odd small and published sizes."""

import dataclasses
import json
import warnings

import jax
import numpy as np
import pytest
from flax import nnx

from audiolm_jax import codecs
from audiolm_jax.codecs import dac, encodec, mimi
from audiolm_jax.codecs.streaming import Tape, own_mesh
from audiolm_jax.hub import files
from tests.helpers.published_codecs import CONFIGS, sound, write

torch = pytest.importorskip("torch", reason="the reference codecs need torch: pip install 'audiolm-jax[parity]'")
transformers = pytest.importorskip("transformers", reason="pip install 'audiolm-jax[parity]'")

# The sizes of the published repositories.
PUBLISHED = {
    name.partition("/")[2].replace("_", "-"): config
    for module in (encodec, dac, mimi)
    for name, config in module.CHECKPOINTS.items()
}
MODELS = {"encodec": "EncodecModel", "dac": "DacModel", "mimi": "MimiModel"}


def opened(tmp_path, name, config):
    """(our codec, the reference) from one folder that this package wrote."""
    kind = write(tmp_path, name, config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs, report = getattr(transformers, MODELS[kind]).from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    return codecs.load(kind, tmp_path), theirs.eval()


def reference_encode(model, waveform_CN):
    """(codes [T, Q], latents [T, Z] of the first chunk) of one signal `[channels, N]`."""
    x = torch.tensor(waveform_CN)[None]
    if model.config.model_type == "encodec":
        chunks = 1
        if model.config.chunk_length is not None:  # as the published feature extractor does
            stride, length = model.config.chunk_stride, model.config.chunk_length
            chunks = -(-x.shape[-1] // stride)
            x = torch.nn.functional.pad(x, (0, (chunks - 1) * stride + length - x.shape[-1]))
        # The reference takes that padding for one chunk more, of silence.
        found = model.encode(x, bandwidth=model.config.target_bandwidths[-1])
        codes, scales = torch.cat(list(found.audio_codes[:chunks]), dim=-1)[0].T, found.audio_scales[:chunks]
        scales = None if scales[0] is None else torch.cat(list(scales), dim=-1).numpy()
        return codes.numpy(), (model.encoder(x)[0].T.numpy() if scales is None else None), scales
    if model.config.model_type == "dac":
        x = torch.nn.functional.pad(x, (0, -x.shape[-1] % model.config.hop_length))
        return model.encode(x).audio_codes[0].T.numpy(), model.encoder(x)[0].T.numpy(), None
    return model.encode(x).audio_codes[0].T.numpy(), model.encoder(x).latents[0].T.numpy(), None


def reference_decode(model, codes_TQ, scales):
    """The waveform `[channels, N]` of one grid."""
    codes = torch.tensor(codes_TQ.T)[None]
    if model.config.model_type == "dac":
        return model.decode(audio_codes=codes).audio_values.numpy()
    if model.config.model_type == "mimi":
        return model.decode(codes).audio_values[0].numpy()
    if scales is None:
        return model.decode(codes[None], [None]).audio_values[0].numpy()
    length = -(-model.config.chunk_length // model.config.hop_length)
    chunks = torch.stack(codes.split(length, dim=-1))
    return model.decode(chunks, torch.tensor(scales).T[:, :, None]).audio_values[0].numpy()


def our_latents(codec, waveform_CN):
    """Latents [T, Z] of one signal from the encoder alone."""
    model = codec.config[1]
    graph, params = nnx.split(model)
    hop = codec.hop
    padded = np.pad(waveform_CN.T[None], ((0, 0), (0, -waveform_CN.shape[-1] % hop), (0, 0)))
    length = padded.shape[1] if codec.name == "dac" else waveform_CN.shape[-1]

    def run(params, x, n_B):
        model, tape = nnx.merge(graph, params), Tape()
        if codec.name != "mimi":
            return model.encoder(x, n_B, tape)[0]
        for part in (model.encoder, model.encoder_transformer, model.downsample):
            x, n_B = part(x, n_B, tape)
        return x

    with own_mesh():
        return np.asarray(jax.jit(run)(params, padded, np.array([length])))[0]


def residuals(codec, latents_TZ, codes_TQ):
    """What every codebook was given when the codes before are `codes_TQ`, and its rows: [(given [T, Z], rows [K, Z])].

    Written out anew here: a code may differ only where two rows are equally near.
    """
    config, model, *books = codec.config
    if codec.name == "dac":
        left, found = latents_TZ.astype(np.float64), []
        for q in range(codec.codebooks):
            book = jax.tree.map(lambda value: np.asarray(value, np.float64), model.quantizer.quantizers[q])
            low = left @ book.in_proj.weight[0] + book.in_proj.bias[...]
            rows_KZ = book.codebook.weight[...]
            unit = rows_KZ / np.linalg.norm(rows_KZ, axis=1, keepdims=True)
            found.append((low / np.linalg.norm(low, axis=1, keepdims=True), unit))
            left = left - rows_KZ[codes_TQ[:, q]] @ book.out_proj.weight[0] - book.out_proj.bias[...]
        return found
    books_QKZ = np.asarray(books[0], np.float64)
    if codec.name == "mimi":
        split = config.num_semantic_quantizers
        chains = [
            (model.quantizer.semantic_residual_vector_quantizer, 0, split),
            (model.quantizer.acoustic_residual_vector_quantizer, split, codec.codebooks),
        ]
        starts = [
            (latents_TZ.astype(np.float64) @ np.asarray(c.input_proj.weight[...], np.float64)[0], a, b)
            for c, a, b in chains
        ]
    else:
        starts = [(latents_TZ.astype(np.float64), 0, codec.codebooks)]
    found = []
    for left, first, stop in starts:
        for q in range(first, stop):
            found.append((left, books_QKZ[q]))
            left = left - books_QKZ[q][codes_TQ[:, q]]
    return found


def check(codec, model, samples, seed):
    channels = codec.channels
    waveform = sound(seed, channels, samples)
    given = waveform[0] if channels == 1 else waveform
    with torch.no_grad():
        theirs, latents, scales = reference_encode(model, waveform)
        decoded = np.clip(reference_decode(model, theirs, scales), -1, 1)
    if scales is None:
        mine = codec.encode(given)
        if samples > 2 * codec.hop:  # one program per length
            np.testing.assert_allclose(our_latents(codec, waveform), latents, atol=1e-4)
        different = np.argwhere(mine != theirs)
        rows = residuals(codec, latents, theirs)
        for t, q in different:
            if (mine[t, :q] != theirs[t, :q]).any():
                continue  # the residual is another one since an earlier codebook
            left, book = rows[q]
            a, b = (((left[t] - book[code]) ** 2).sum() for code in (mine[t, q], theirs[t, q]))
            assert abs(a - b) < 1e-5, (t, q, a, b)
        ours = codec.decode(theirs)
    else:
        mine, found = codec.encode_scaled(given)
        np.testing.assert_allclose(found, scales[0], rtol=1e-5)
        ours = codec.decode(theirs, scales_BC=scales[0])
    assert mine.shape == theirs.shape == (codec.frames(samples), codec.codebooks)
    assert ours.shape[-1] == codec.samples(len(theirs))
    ours = np.atleast_2d(ours)
    np.testing.assert_allclose(ours[:, : decoded.shape[-1]], decoded, atol=1e-4)
    assert not ours[:, decoded.shape[-1] :].any() and ours.shape[-1] - decoded.shape[-1] < codec.hop
    return mine, theirs


@pytest.mark.parametrize("name", [name for name in CONFIGS if name.partition("-")[0] in MODELS])
def test_small_codecs_equal_the_reference(name, tmp_path):
    codec, model = opened(tmp_path, name, CONFIGS[name])
    equal, count = 0, 0
    for seed, samples in enumerate((1, 5, codec.hop - 1, codec.hop, codec.hop * 211 + 5)):
        mine, theirs = check(codec, model, samples, seed)
        equal, count = equal + (mine == theirs).sum(), count + mine.size
    assert all(len(np.unique(theirs[:, q])) > 8 for q in range(codec.codebooks))
    assert equal >= 0.999 * count


@pytest.mark.slow
@pytest.mark.parametrize("name", list(PUBLISHED))
def test_published_sizes_equal_the_reference(name, tmp_path):
    codec, model = opened(tmp_path, name, PUBLISHED[name])
    mine, theirs = check(codec, model, int(1.3 * codec.sample_rate) + 7, 0)
    assert all(len(np.unique(theirs[:, q])) > 5 for q in range(codec.codebooks))
    assert (mine == theirs).mean() >= 0.999


@pytest.mark.parametrize("kind", list(MODELS))
def test_weights_written_by_torch_are_read(kind, tmp_path):
    """Names, shapes and values of a model that `transformers` made and saved itself."""
    write(tmp_path / "ours", kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = getattr(transformers, MODELS[kind]).from_pretrained(tmp_path / "ours")
        model.save_pretrained(tmp_path / "theirs")
    a, b = (codecs.load(kind, tmp_path / who) for who in ("ours", "theirs"))
    assert a.fingerprint == b.fingerprint
    assert json.loads((tmp_path / "theirs" / "config.json").read_text())["model_type"] == kind
    saved = [files.read(tmp_path / who, kind, "")[1].tensors for who in ("ours", "theirs")]
    assert saved[0].keys() == saved[1].keys()


@pytest.mark.parametrize("codebooks", [1, 2])
def test_fewer_codebooks_are_a_smaller_bandwidth(codebooks, tmp_path):
    config = dataclasses.replace(CONFIGS["encodec"], target_bandwidths=(0.5, 1.0, 2.0))
    _, model = opened(tmp_path, "encodec", config)
    codec = codecs.load("encodec", tmp_path, codebooks=codebooks)
    waveform = sound(3, 1, 301)
    with torch.no_grad():
        theirs = model.encode(torch.tensor(waveform)[None], bandwidth=0.5 * codebooks).audio_codes[0, 0].T.numpy()
    np.testing.assert_array_equal(codec.encode(waveform[0]), theirs)
