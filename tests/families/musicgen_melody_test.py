"""MusicGen-melody against `transformers` (torch on the CPU): chroma, logits, generation, files; random small weights.

In a batch the reference puts zeros between a short text and the music, as many as the longest text has tokens more, so
that what a row gets depends on its neighbours. Here a row is what the reference makes of it alone.
"""

import types

import jax
import numpy as np
import pytest
import soundfile

import audiolm_jax
from audiolm_jax.cli import main
from audiolm_jax.encoders import chroma
from audiolm_jax.errors import InputError
from audiolm_jax.families import musicgen
from audiolm_jax.sampling import SamplingConfig, requests
from audiolm_jax.sampling.rules import guide
from audiolm_jax.sampling.windows import Windows
from tests.families.musicgen_test import TEXTS, delayed, logits_of, reference_codes, theirs_of, tokens_of
from tests.helpers.published_musicgen import SIZES, made, reopened

torch = pytest.importorskip("torch", reason="the reference needs torch: pip install 'audiolm-jax[parity]'")
pytest.importorskip("transformers", reason="pip install 'audiolm-jax[parity]'")
reference = pytest.importorskip("transformers.models.musicgen_melody.feature_extraction_musicgen_melody")

FRAMES = 7  # of a melody that the small models see


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """{name of a size: (the reference, its folder)}, each made when it is asked for."""

    class Made(dict):
        def __missing__(self, name):
            folder = tmp_path_factory.mktemp(name)
            self[name] = made(folder, SIZES[name], melody={"chroma_length": FRAMES}), folder
            return self[name]

    return Made()


def tune(seed, samples=30000, rate=600):
    """Notes of a second each, and noise, so that no two classes are equally loud."""
    rng = np.random.default_rng(seed)
    pitch_N = np.repeat(rng.uniform(40, 250, samples // rate + 1), rate)[:samples]
    noise_N = 0.01 * rng.standard_normal(samples)
    return (np.sin(2 * np.pi * np.cumsum(pitch_N) / rate) + noise_N).astype(np.float32)


def extracted(waveform_N, rate, classes=12):
    """[1, T, W]: the features of the reference, whose spectrogram (torchaudio's) is here torch's own."""
    window = torch.hann_window(chroma.FFT)

    def spectrogram(x):
        spectrum = torch.stft(x, chroma.FFT, chroma.HOP, window=window, center=True, return_complex=True)
        return (spectrum / window.pow(2).sum().sqrt()).abs().pow(2)

    bank = reference.chroma_filter_bank(chroma.FFT, classes, rate)
    stand_in = types.SimpleNamespace(
        n_fft=chroma.FFT, chroma_filters=torch.from_numpy(bank).float(), spectrogram=spectrogram
    )
    heard = torch.from_numpy(waveform_N[None, : 30 * rate])
    return reference.MusicgenMelodyFeatureExtractor._torch_extract_fbank_features(stand_in, heard), stand_in


@pytest.mark.parametrize("rate", [32000, pytest.param(44100, marks=pytest.mark.slow)])
def test_chroma_equals_the_reference(rate):
    rng, t = np.random.default_rng(0), np.arange(7 * rate) / rate
    notes = np.sin(2 * np.pi * 220 * 2 ** (np.floor(3 * t) / 12) * t)
    found = set()
    for heard in (rng.standard_normal(3 * rate + 1), notes, rng.standard_normal(5000), np.zeros(40000)):
        heard = 0.3 * heard.astype(np.float32)
        expected, stand_in = extracted(heard, rate)
        frames = expected.shape[1]
        melody = chroma.Melody(frames, 12, rate, heard)
        np.testing.assert_array_equal(melody.chroma_CW, expected[0])
        padded = torch.nn.functional.pad(torch.from_numpy(heard), (max(0, 16384 - len(heard)) // 2,) * 2)
        energy = torch.einsum("cf,ft->tc", stand_in.chroma_filters, stand_in.spectrogram(padded))
        expected = torch.nn.functional.normalize(energy, p=float("inf"), dim=-1, eps=1e-6)
        np.testing.assert_allclose(chroma.strengths(heard, rate), expected, atol=1e-6)
        found |= set(melody.chroma_CW.argmax(axis=1).tolist())
        np.testing.assert_array_equal(
            chroma.Melody(2 * frames + 1, 12, rate, heard).chroma_CW[frames:-1], melody.chroma_CW
        )
    assert len(found) == 12


def test_what_is_a_melody():
    nothing = chroma.Melody(60, 12, 32000)
    t = np.arange(8 * 44100) / 44100
    right = np.sin(2 * np.pi * 440 * t).astype(np.float32)  # A, the tenth class from C
    for given in ((right, 44100), (np.stack([0.5 * right, right]), 44100)):
        assert set(nothing.of(given).chroma_CW.argmax(axis=1)) == {9}
    assert set(nothing.chroma_CW.argmax(axis=1)) == {0} == set(nothing.of(right).of(None).chroma_CW.argmax(axis=1))
    for bad in (right.astype(int), right.reshape(-1, 2), right[:0], right * np.nan, np.float32(1)):
        with pytest.raises(InputError, match="a melody"):
            nothing.of(bad)


def test_a_rolled_melody_begins_again_at_its_end():
    heard = tune(0)
    melody = chroma.Melody(5, 12, 600, heard)
    np.testing.assert_array_equal(melody.rolled(29000).waveform_N, np.concatenate([heard[29000:], heard[:17000]]))
    short = chroma.Melody(5, 12, 600, heard[:7000]).rolled(6000).waveform_N
    np.testing.assert_array_equal(short, np.concatenate([heard[6000:7000], heard[:7000], heard[:7000], heard[:3000]]))
    assert chroma.Melody(5, 12, 600).rolled(9).waveform_N is None


def states_of(model, given, scale=3.0):
    """What the reference puts before the tokens of a row and of its unconditional half [2, positions, D]."""
    config = types.SimpleNamespace(guidance_scale=scale, output_attentions=False, output_hidden_states=False)
    arguments = {name: value for name, value in given.items() if name != "input_ids"}
    made = model._prepare_encoder_hidden_states_kwargs_for_generation(
        given["input_ids"], arguments, "input_ids", config
    )
    return made["encoder_hidden_states"]


@pytest.mark.parametrize(
    "name", ["stereo", *(pytest.param(name, marks=pytest.mark.slow) for name in ("two-codebooks", "mono"))]
)
def test_logits_equal_the_reference(name, folders):
    """Of texts of unequal lengths, with a melody and without: one pass, and a prompt and cached steps."""
    model, folder = folders[name]
    generator = audiolm_jax.load(folder)
    vocab, network, prompt, frames = generator.vocab, generator.model, 6, 17
    codes = np.random.default_rng(0).integers(0, vocab.codebook_size, (2, frames, vocab.codebooks))
    ids_BQL = delayed(codes, generator)
    L, heard = ids_BQL.shape[-1], [tune(1), None]
    expected, cached = [], []  # rows with text, then those without
    with torch.no_grad():
        for text, melody, ids_QL in zip(TEXTS, heard, ids_BQL, strict=True):
            given = theirs_of(generator, model, [text])
            if melody is not None:
                given["input_features"] = extracted(melody, 600)[0]
            states = states_of(model, dict(given))
            flat = torch.tensor(np.tile(ids_QL, (2, 1)))
            whole = model(encoder_hidden_states=states, decoder_input_ids=flat).logits
            begin = model(encoder_hidden_states=states, decoder_input_ids=flat[:, :prompt], use_cache=True)
            steps, past = [begin.logits[:, -1:]], begin.past_key_values
            for i in range(prompt, L):
                step = model(decoder_input_ids=flat[:, i : i + 1], past_key_values=past, use_cache=True)
                steps, past = [*steps, step.logits], step.past_key_values
            for into, logits in ((expected, whole), (cached, torch.cat(steps, 1))):
                into.append(logits.numpy().reshape(2, len(ids_QL), -1, vocab.codebook_size).transpose(0, 2, 1, 3))
            without = model(**given, decoder_input_ids=flat[: len(ids_QL)]).logits.numpy()  # the ordinary way in
            np.testing.assert_allclose(
                without.reshape(len(ids_QL), -1, vocab.codebook_size).swapaxes(0, 1), expected[-1][0], atol=1e-5
            )
    expected, cached = ([row[half] for half in (0, 1) for row in rows] for rows in (expected, cached))

    asked = generator.requests(TEXTS, frames=frames, melodies=heard)
    prompts = requests.prompts(asked, generator.grid, vocab, causal=True, guided=True)
    before_M = prompts.length_M - 1
    assert before_M.tolist() == [FRAMES + 2, FRAMES + 7] * 2
    width = int(before_M.max()) + L
    tokens = np.zeros((4, width, vocab.codebooks), np.int32)
    for m, before in enumerate(before_M):
        tokens[m, before : before + L] = tokens_of(ids_BQL[m % 2, None], vocab)[0]
    positions = np.tile(np.arange(width, dtype=np.int32), (4, 1))
    states = np.zeros((4, width, prompts.states_MPW.shape[2]), np.float32)
    states[:, : prompts.states_MPW.shape[1]] = prompts.states_MPW[:, :width]
    with jax.set_mesh(generator.mesh):
        end_M = before_M + L
        used = (positions < end_M[:, None]).astype(np.int32)
        hidden = jax.jit(lambda n, s: n(tokens, positions, used, states_BLW=s))(network, states)
        whole = logits_of(network, vocab, hidden)

        def decode(network, states):
            valid = positions < before_M[:, None] + prompt
            hidden, read = network.prefill(
                np.where(valid[:, :, None], tokens, 0), positions, valid.astype(np.int32), states_BPW=states
            )
            cache = network.init_cache(4, L - prompt)

            def step(cache, i):
                token = tokens_of(ids_BQL, vocab).astype(np.int32)
                token = jax.lax.dynamic_index_in_dim(jax.numpy.tile(token, (2, 1, 1)), prompt + i, 1, keepdims=False)
                made, cache = network.step(token, before_M + prompt + i, i, read, valid, cache)
                return cache, made

            _, made = jax.lax.scan(step, cache, jax.numpy.arange(L - prompt))
            return hidden, jax.numpy.moveaxis(made, 0, 1)

        first, steps = (logits_of(network, vocab, part) for part in jax.jit(decode)(network, states))
    for m, before in enumerate(before_M):
        np.testing.assert_allclose(cached[m], expected[m][before + prompt - 1 :], atol=1e-4)  # reference with itself
        np.testing.assert_allclose(whole[m, : before + L], expected[m], atol=1e-4)
        np.testing.assert_allclose(first[m, : before + prompt], expected[m][: before + prompt], atol=1e-4)
        np.testing.assert_allclose(steps[m], expected[m][before + prompt :], atol=1e-4)
    for b in (0, 1):
        ours = np.asarray(guide(steps[b], steps[b + 2], 3.0))
        theirs = expected[b + 2] + 3.0 * (expected[b] - expected[b + 2])
        np.testing.assert_allclose(ours, theirs[before_M[b] + prompt :], atol=5e-4)
    assert expected[0].std() > 0.5 and np.abs(expected[0] - expected[2]).max() > 0.1


def compare_codes(model, generator, frames, heard, scale=3.0):
    generator.extra_frames = 0  # the end as the reference has it
    sampling = SamplingConfig(temperature=(0.0,), guidance=scale)
    results = generator.generate(TEXTS, melody=heard, frames=frames, sampling=sampling)
    expected = []
    for text, melody, result in zip(TEXTS, heard, results, strict=True):
        given = theirs_of(generator, model, [text])
        if melody is not None:
            given["input_features"] = extracted(melody, 600)[0]
        codes, waveforms = reference_codes(model, generator, frames, guidance_scale=scale, **given)
        np.testing.assert_array_equal(result.codes_TQ, codes[0])
        np.testing.assert_allclose(np.atleast_2d(result.waveform), waveforms[0].clip(-1, 1), atol=1e-4)
        expected.append(codes[0])
    assert len(np.unique(expected)) > 10 and (expected[0] != expected[1]).mean() > 0.5


@pytest.mark.parametrize(("name", "frames"), [("stereo", 24), pytest.param("mono", 197, marks=pytest.mark.slow)])
def test_greedy_generation_equals_the_reference(name, frames, folders):
    model, folder = folders[name]
    compare_codes(model, audiolm_jax.load(folder), frames, [tune(1), None])


def test_the_melody_matters_and_a_row_is_what_it_is_alone(folders):
    _, folder = folders["stereo"]
    generator = audiolm_jax.load(folder)
    both = generator.generate(TEXTS, melody=[tune(1), tune(2)], frames=24)
    for text, melody, row in zip(TEXTS, (tune(1), tune(2)), both, strict=True):
        seeds = [TEXTS.index(text)]
        alone = generator.generate(text, melody=melody, frames=24, seeds=seeds)
        np.testing.assert_array_equal(alone.codes_TQ, row.codes_TQ)
        without = generator.generate(text, frames=24, seeds=seeds)
        assert (without.codes_TQ != row.codes_TQ).any()
    assert len(generator.generate(frames=3).codes_TQ) == 3  # neither text nor melody
    # Recordings to continue stand after melody and text, and windows are such.
    greedy = SamplingConfig(temperature=(0.0,), guidance=3.0)
    whole = generator.generate(TEXTS, melody=[tune(1), None], frames=24, sampling=greedy)
    heard = [row.codes_TQ[:frames] for row, frames in zip(whole, (9, 17), strict=True)]
    again = generator.generate(TEXTS, audio=heard, melody=[tune(1), None], frames=24, sampling=greedy)
    for a, b in zip(whole, again, strict=True):
        np.testing.assert_array_equal(a.codes_TQ, b.codes_TQ)
    generator.windows = Windows(24, 14)
    long = generator.generate(TEXTS, melody=[tune(1), None], frames=[24, 40], sampling=greedy)
    for a, b in zip(whole, long, strict=True):
        np.testing.assert_array_equal(a.codes_TQ, b.codes_TQ[:24])
    rolled = generator.generate(TEXTS[1], audio=long[1].codes_TQ[14:24], frames=24, sampling=greedy)
    assert len(long[1].codes_TQ) == 40 and (rolled.codes_TQ[10:] == long[1].codes_TQ[24:38]).all()


def test_files(folders, tmp_path, capsys):
    """A workdir of the checkpoint, speech from it, and the published layout again with identical logits."""
    model, folder = folders["stereo"]
    run, out = tmp_path / "run", tmp_path / "out"
    assert main.main(["import", str(folder), str(run)]) == 0
    assert main.main(["export", "--workdir", str(run), "--out", str(out)]) == 0
    again = reopened(out)
    codes = torch.randint(0, 33, (4, 9), generator=torch.Generator().manual_seed(0))
    given = {**theirs_of(audiolm_jax.load(run), model, TEXTS[:1]), "input_features": extracted(tune(1), 600)[0]}
    with torch.no_grad():
        a, b = (m(decoder_input_ids=codes, **given).logits for m in (model, again))
    assert torch.equal(a, b) and (out / "config.json").read_text() == (run / "published.json").read_text()
    soundfile.write(tmp_path / "tune.wav", 0.05 * tune(1), 600, subtype="FLOAT")  # a loud one is taken for noise
    wav = tmp_path / "made.wav"
    text = ["--text", "rock", "--frames", "9", "--out", str(wav), "--config.sampling.temperature=0"]
    said = ["generate", "--workdir", str(run), *text]
    assert main.main([*said, "--melody", str(tmp_path / "tune.wav")]) == 0
    greedy = SamplingConfig(temperature=(0.0,), top_k=(250,), guidance=3.0)
    expected = audiolm_jax.load(out).generate("rock", melody=tune(1), frames=9, sampling=greedy)
    np.testing.assert_allclose(soundfile.read(wav, always_2d=True)[0].T, expected.waveform.clip(-1, 1), atol=1e-4)
    assert main.main(said) == 0
    assert np.abs(soundfile.read(wav, always_2d=True)[0].T - expected.waveform).max() > 1e-2
    assert main.main([*said, "--melody", str(tmp_path / "nothing.wav")]) == 2
    assert "--melody=" in capsys.readouterr().err


def test_every_problem_is_named_at_once(folders, tmp_path):
    from safetensors.numpy import load_file, save_file

    _, folder = folders["stereo"]
    tensors = load_file(folder / "model.safetensors")
    del tensors["audio_enc_to_dec_proj.bias"]
    tensors["audio_enc_to_dec_proj.weight"] = tensors["audio_enc_to_dec_proj.weight"][:, :11].copy()
    tensors["decoder.model.decoder.layers.0.encoder_attn.k_proj.weight"] = np.zeros((20, 20), np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(InputError) as error:
        musicgen.read(tmp_path)
    for problem in (
        "audio_enc_to_dec_proj.bias is missing",
        "audio_enc_to_dec_proj.weight is (20, 11) where (20, 12) is needed",
        "layers.0.encoder_attn.k_proj.weight is unexpected",
    ):
        assert problem in str(error.value)
    config = (folder / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace('"chroma_length": 7', '"chroma_length": 0'))
    with pytest.raises(InputError, match="chroma_length=0"):
        musicgen.read(tmp_path)


def test_a_model_that_follows_no_melody(tmp_path):
    from experiments.colab import random_musicgen

    random_musicgen.write(tmp_path)
    with pytest.raises(InputError, match="takes none"):
        audiolm_jax.load(tmp_path).generate("rock", melody=tune(1), frames=9)
