"""MusicGen against `transformers` (torch on the CPU): logits, generation, files; random weights of odd small sizes."""

import gc
import json

import jax
import numpy as np
import pytest

import audiolm_jax
from audiolm_jax.cli import main
from audiolm_jax.encoders import t5
from audiolm_jax.errors import InputError
from audiolm_jax.families import musicgen
from audiolm_jax.sampling import SamplingConfig, requests
from audiolm_jax.sampling.rules import guide
from experiments.colab.random_musicgen import sound
from tests.helpers.published_musicgen import SIZES, made, reopened

torch = pytest.importorskip("torch", reason="the reference needs torch: pip install 'audiolm-jax[parity]'")
transformers = pytest.importorskip("transformers", reason="pip install 'audiolm-jax[parity]'")

TEXTS = ["rock", "slow jazz with a loud piano"]  # of unequal lengths
GREEDY = SamplingConfig(temperature=(0.0,))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """{name: (the reference, its folder)}, each made when it is asked for."""

    class Made(dict):
        def __missing__(self, name):
            folder = tmp_path_factory.mktemp(name)
            self[name] = made(folder, SIZES[name]), folder
            return self[name]

    return Made()


def theirs_of(generator, model, texts=TEXTS):
    """The arguments that the reference's processor makes of texts."""
    return padded([generator.conditioning.text_encoder.tokenizer.encode(text).ids for text in texts])


def padded(ids):
    longest = max(map(len, ids))
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids])
    return {"input_ids": torch.tensor([row + [0] * (longest - len(row)) for row in ids]), "attention_mask": mask}


def delayed(codes_BTQ, generator):
    """Codes -> ids of the reference [B, Q, L]: the special token first, then codebook q at its delay."""
    B, T, Q = codes_BTQ.shape
    delays = [int(generator.grid.order(0, q, 1)) for q in range(Q)]
    ids = np.full((B, Q, T + 1 + max(delays)), generator.vocab.codebook_size)
    for q, delay in enumerate(delays):
        ids[:, q, 1 + delay : 1 + delay + T] = codes_BTQ[:, :, q]
    return ids


def tokens_of(ids_BQL, vocab):
    special_Q = vocab.extra_start + np.arange(vocab.codebooks)
    ids_BLQ = ids_BQL.transpose(0, 2, 1)
    codes = vocab.code_start + np.arange(vocab.codebooks) * vocab.codebook_size + ids_BLQ
    return np.where(ids_BLQ == vocab.codebook_size, special_Q, codes)


def logits_of(model, vocab, hidden):
    """[..., Q, V]: those of the codes."""
    count = vocab.codebooks * vocab.codebook_size
    logits = np.asarray(model.logits(hidden))[..., vocab.code_start : vocab.code_start + count]
    return logits.reshape(*logits.shape[:-1], vocab.codebooks, vocab.codebook_size)


def compare_logits(generator, model, frames, prompt, atol=1e-4):
    """Both halves of a guided batch, as one pass, and as a prompt and cached steps, here and there."""
    vocab, network = generator.vocab, generator.model
    codes = np.random.default_rng(0).integers(0, vocab.codebook_size, (2, frames, vocab.codebooks))
    ids_BQL = np.tile(delayed(codes, generator), (2, 1, 1))
    L = ids_BQL.shape[-1]
    given = theirs_of(generator, model)
    with torch.no_grad():
        states = model.text_encoder(**given).last_hidden_state
        common = {
            "encoder_outputs": (torch.cat([states, torch.zeros_like(states)]),),
            "attention_mask": torch.cat([given["attention_mask"], torch.zeros_like(given["attention_mask"])]),
        }
        flat = torch.tensor(ids_BQL.reshape(-1, L))
        whole = model(decoder_input_ids=flat, **common).logits.numpy().reshape(4, -1, L, vocab.codebook_size)
        first = model(decoder_input_ids=flat[:, :prompt], use_cache=True, **common)
        steps, past = [first.logits[:, -1]], first.past_key_values
        for i in range(prompt, L):
            step = model(decoder_input_ids=flat[:, i : i + 1], past_key_values=past, use_cache=True, **common)
            steps, past = [*steps, step.logits[:, -1]], step.past_key_values
    expected = whole.transpose(0, 2, 1, 3)
    cached = torch.stack(steps, 1).numpy().reshape(4, -1, len(steps), vocab.codebook_size).transpose(0, 2, 1, 3)
    np.testing.assert_allclose(cached, expected[:, prompt - 1 :], atol=atol)  # the reference with itself

    asked = generator.requests(TEXTS, frames=frames)
    tokens = tokens_of(ids_BQL, vocab).astype(np.int32)
    positions = np.tile(np.arange(L, dtype=np.int32), (4, 1))
    with jax.set_mesh(generator.mesh):
        encoded = requests.encoded(asked, network.config.cross_width, True)
        hidden = jax.jit(lambda n, e: n(tokens, positions, positions * 0 + 1, encoded=e))(network, encoded)
        got = logits_of(network, vocab, hidden)
        np.testing.assert_allclose(got, expected, atol=atol)

        def decode(network, encoded):
            begin = slice(0, prompt)
            hidden, read = network.prefill(
                tokens[:, begin], positions[:, begin], positions[:, begin] * 0 + 1, encoded=encoded
            )
            cache = network.init_cache(4, L - prompt)
            valid = np.ones((4, prompt), bool)

            def step(cache, i):
                token = jax.lax.dynamic_index_in_dim(tokens[:, prompt:], i, axis=1, keepdims=False)
                made, cache = network.step(token, positions[:, 0] + prompt + i, i, read, valid, cache, encoded[1])
                return cache, made

            _, made = jax.lax.scan(step, cache, jax.numpy.arange(L - prompt))
            return hidden, jax.numpy.moveaxis(made, 0, 1)

        parts = [logits_of(network, vocab, part) for part in jax.jit(decode)(network, encoded)]
    got = np.concatenate(parts, axis=1)
    np.testing.assert_allclose(got, expected, atol=atol)
    processor = transformers.generation.logits_process.ClassifierFreeGuidanceLogitsProcessor(3.0)
    guided = processor(torch.zeros(2, 1), torch.tensor(expected.reshape(4, -1))).numpy()
    np.testing.assert_allclose(np.asarray(guide(got[:2], got[2:], 3.0)).reshape(2, -1), guided, atol=5 * atol)
    assert expected.std() > 0.5 and np.abs(expected[0] - expected[2]).max() > 0.1  # the text matters


@pytest.mark.parametrize(
    "name", ["mono", *(pytest.param(name, marks=pytest.mark.slow) for name in ("two-codebooks", "stereo"))]
)
def test_logits_equal_the_reference(name, folders):
    model, folder = folders[name]
    compare_logits(audiolm_jax.load(folder), model, frames=21, prompt=7)


def reference_codes(model, generator, frames, **given):
    """Codes [B, T, Q] of greedy generation by the reference, and its waveforms."""
    heard, decode = [], model.audio_encoder.decode
    model.audio_encoder.decode = lambda codes, *a, **k: (heard.append(codes.numpy()[0]), decode(codes, *a, **k))[1]
    tail = max(int(generator.grid.order(0, q, 1)) for q in range(generator.vocab.codebooks))
    try:
        with torch.no_grad():
            waveforms = model.generate(**given, do_sample=False, max_length=frames + tail + 1)
    finally:
        model.audio_encoder.decode = decode
    codes = np.stack(heard, axis=2)  # left and right, or one: [B, q, channels, T]
    return codes.reshape(len(codes), -1, codes.shape[-1]).transpose(0, 2, 1), waveforms.numpy()


def test_greedy_generation_equals_the_reference_for_200_steps(folders):
    model, folder = folders["mono"]
    generator = audiolm_jax.load(folder)
    generator.extra_frames = 0  # the end as the reference has it
    given = theirs_of(generator, model)
    frames = 201 - 4
    expected, waveforms = reference_codes(model, generator, frames, guidance_scale=3.0, **given)
    sampling = SamplingConfig(temperature=(0.0,), guidance=3.0)
    results = generator.generate(TEXTS, frames=frames, sampling=sampling)
    np.testing.assert_array_equal([result.codes_TQ for result in results], expected)
    assert len(np.unique(expected)) > 20 and (expected[0] != expected[1]).mean() > 0.5
    for result, waveform in zip(results, waveforms, strict=True):
        np.testing.assert_allclose(result.waveform, waveform[0].clip(-1, 1), atol=1e-4)


@pytest.mark.parametrize("name", ["stereo", pytest.param("two-codebooks", marks=pytest.mark.slow)])
def test_continuing_audio_equals_the_reference(name, folders):
    model, folder = folders[name]
    generator = audiolm_jax.load(folder)
    generator.extra_frames = 0
    channels, frames = generator.codec.channels, 24
    heard = sound(0, 2, channels, 9 * generator.codec.hop)
    given = {**theirs_of(generator, model), "input_values": torch.tensor(heard), "padding_mask": torch.ones(2, 54)}
    expected, waveforms = reference_codes(model, generator, frames, guidance_scale=2.0, **given)
    results = generator.generate(
        TEXTS,
        audio=list(heard if channels == 2 else heard[:, 0]),
        frames=frames,
        include_prompt=True,
        sampling=SamplingConfig(temperature=(0.0,), guidance=2.0),
    )
    np.testing.assert_array_equal([result.codes_TQ for result in results], expected)
    for result, waveform in zip(results, waveforms, strict=True):
        assert result.prompt_frames == 9
        np.testing.assert_allclose(np.atleast_2d(result.waveform), waveform.clip(-1, 1), atol=1e-4)


def test_defect_1_the_end_is_like_the_middle(folders):
    """The first frames of a longer piece are the shorter piece; the reference makes other ones at its end."""
    model, folder = folders["mono"]
    generator = audiolm_jax.load(folder)
    long, short = (generator.generate(TEXTS, frames=n, sampling=GREEDY) for n in (40, 24))
    assert [len(result.codes_TQ) for result in short] == [24, 24]
    for a, b in zip(long, short, strict=True):
        np.testing.assert_array_equal(a.codes_TQ[:24], b.codes_TQ)
        assert len(b.waveform) == 24 * generator.codec.hop
    theirs, _ = reference_codes(model, generator, 24, **theirs_of(generator, model))
    np.testing.assert_array_equal([r.codes_TQ[:21] for r in short], theirs[:, :21])
    assert (np.stack([r.codes_TQ for r in short]) != theirs).any()


def test_defect_3_short_pieces_have_their_delays(folders):
    """The reference leaves the delays out where there are fewer frames than them."""
    _, folder = folders["mono"]
    generator = audiolm_jax.load(folder)
    long = generator.generate(TEXTS, frames=24, sampling=GREEDY)
    for frames in (1, 2):
        for a, b in zip(long, generator.generate(TEXTS, frames=frames, sampling=GREEDY), strict=True):
            np.testing.assert_array_equal(a.codes_TQ[:frames], b.codes_TQ)


def test_one_text_one_result_and_streams(folders):
    _, folder = folders["mono"]
    generator = audiolm_jax.load(folder)
    assert generator.sampling == SamplingConfig(top_k=(250,), guidance=3.0)
    one = generator.generate(text="rock", seconds=0.2)
    assert len(one.codes_TQ) == 20 and one.sample_rate == 600 and one.waveform.shape == (120,)
    [also, _] = generator.generate(["rock", "jazz"], seconds=0.2)
    np.testing.assert_array_equal(one.codes_TQ, also.codes_TQ)
    streamed = np.concatenate([chunk[0] for chunk in generator.stream(["rock"], seconds=0.2)])
    np.testing.assert_array_equal(streamed, one.waveform)
    nothing = generator.generate(seconds=0.2)  # no text: what guidance leads away from, alone
    assert len(nothing.codes_TQ) == 20
    for options, said in (({}, "length is needed"), ({"frames": 0}, "a segment has 1..3000")):
        with pytest.raises(InputError, match=said):
            generator.generate("rock", **options)


def test_what_is_written_is_opened_with_identical_logits(folders, tmp_path):
    model, folder = folders["stereo"]
    published = musicgen.read(folder)
    musicgen.write(tmp_path, published)
    again = reopened(tmp_path)
    for (name, a), (_, b) in zip(model.state_dict().items(), again.state_dict().items(), strict=True):
        # The weight norm of the codec is folded and unfolded; nothing else is computed.
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6 if name.startswith("audio_encoder.") else 0)
    given = theirs_of(published.generator(), model)
    codes = torch.randint(0, 33, (2 * 4, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        a, b = (m(decoder_input_ids=codes, **given).logits for m in (model, again))
    assert torch.equal(a, b)
    assert json.loads((tmp_path / "config.json").read_text()) == json.loads((folder / "config.json").read_text())


def test_a_workdir_is_the_checkpoint_and_goes_back(folders, tmp_path, capsys):
    _, folder = folders["stereo"]
    run, out = tmp_path / "run", tmp_path / "out"
    assert main.main(["import", str(folder), str(run)]) == 0
    a, b = (audiolm_jax.load(source).generate("rock", frames=9) for source in (folder, run))
    np.testing.assert_array_equal(a.codes_TQ, b.codes_TQ)
    np.testing.assert_array_equal(a.waveform, b.waveform)
    text = ["--text", "rock", "--frames", "9", "--out", str(tmp_path / "a.wav"), "--config.sampling.temperature=0"]
    assert main.main(["generate", "--workdir", str(run), *text]) == 0
    assert main.main(["export", "--workdir", str(run), "--out", str(out)]) == 0
    reopened(out)
    assert audiolm_jax.load(out).generate("rock", frames=9).codes_TQ.tolist() == a.codes_TQ.tolist()
    assert main.main(["import", str(folder), str(run)]) == 2
    assert "there is a run already" in capsys.readouterr().err


def test_several_files_are_one_checkpoint(folders, tmp_path):
    model, folder = folders["two-codebooks"]
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    a, b = (musicgen.tensors_of(p.model, p.vocab) for p in map(musicgen.read, (folder, tmp_path)))
    assert a.keys() == b.keys() and all((a[name] == b[name]).all() for name in a)
    shards[0].unlink()
    with pytest.raises(InputError, match=f"lacks {shards[0].name}"):
        musicgen.read(tmp_path)


@pytest.mark.slow
def test_the_published_small_decoder_equals_the_reference(tmp_path):
    """24 layers of 1024, four codebooks of 2048, the text encoder of t5-base: 530 million parameters, 5 GB."""
    text = {"d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_heads": 12}
    model = made(tmp_path, ({}, text, (4.4,)), born=True, codebook_size=2048)
    tokenizer = t5.read_tokenizer(tmp_path / t5.TOKENIZER)
    ids = [tokenizer.encode(text).ids for text in TEXTS]
    given = padded(ids)
    codes = np.random.default_rng(0).integers(0, 2049, (2, 4, 12))
    with torch.no_grad():
        expected = model(decoder_input_ids=torch.tensor(codes.reshape(8, -1)), **given).logits.numpy()
    del model
    gc.collect()  # before the second half a billion
    p = musicgen.read(tmp_path)
    states = t5.TextEncoder(p.encoder, tokenizer)(TEXTS)
    asked = [requests.Request((), np.zeros((0, 4), np.int32), encoded_EW=row) for row in states]
    tokens, positions = tokens_of(codes, p.vocab).astype(np.int32), np.tile(np.arange(12, dtype=np.int32), (2, 1))
    encoded = requests.encoded(asked, 768, False)
    hidden = jax.jit(lambda n, e: n(tokens, positions, positions * 0 + 1, encoded=e))(p.model, encoded)
    got = logits_of(p.model, p.vocab, hidden).transpose(0, 2, 1, 3)
    np.testing.assert_allclose(got.reshape(expected.shape), expected, atol=1e-4)
    assert expected.std() > 0.1
