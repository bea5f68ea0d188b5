"""The yardstick: error rates are exact, the frozen recogniser hears speech and survives everything else."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from audiolm_jax.data.corpora import CorpusConfig, sentences, synthetic
from audiolm_jax.encoders import recogniser
from audiolm_jax.errors import InputError
from audiolm_jax.evaluation import intelligibility as heard
from experiments.recogniser import train as training

RATE = 16_000
TINY = recogniser.RecogniserConfig(width=16, layers=2)


@functools.cache
def tiny_weights() -> dict[str, np.ndarray]:
    shapes = nnx.to_flat_state(nnx.eval_shape(lambda: nnx.state(recogniser.Network(TINY, rngs=nnx.Rngs(0)))))
    rng = np.random.default_rng(0)
    return {
        ".".join(map(str, path)): rng.normal(size=leaf.shape).astype(np.float32) * leaf.shape[0] ** -0.5
        for path, leaf in shapes
    }


def tiny() -> recogniser.Recogniser:
    """A recogniser that was never trained."""
    return recogniser.Recogniser(TINY, tiny_weights())


def speak(level: str, count: int, voices: int = 6) -> tuple[list[str], list[np.ndarray]]:
    """Held-out sentences by espeak voices of the training set, at 16 kHz."""
    from audiolm_jax.data.corpora.espeak import Engine

    engine, rng = Engine(), np.random.default_rng(5)
    texts = sentences.texts(level, "test", count, rng)
    waveforms = []
    for index, text in enumerate(texts):
        spoken = engine.speak(text, synthetic.VOICES[index % voices], seed=index + 1)
        waveforms.append(synthetic.finish(spoken, text, RATE)[0])
    return texts, waveforms


def edits(a: str, b: str) -> int:
    """Levenshtein distance, written naively."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row, above = [i], row
        for j, y in enumerate(b, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (x != y)))
    return row[-1]


# ---------------------------------------------------------------- error rates


def test_error_rate_is_edit_distance_over_reference_length():
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("ab c"), rng.integers(0, 9))) for _ in range(60)]
    references, hypotheses = words[:30], words[30:]
    errors_B, lengths_B = heard.character_errors(references, hypotheses)
    expected = [edits(heard.normalise(r), heard.normalise(h)) for r, h in zip(references, hypotheses)]
    assert errors_B.tolist() == expected
    assert heard.character_error_rate(references, hypotheses) == sum(expected) / lengths_B.sum()
    assert heard.character_error_rate(["ab"], ["abcdefgh"]) == 3.0


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("  The OLD  teacher,\tsold! ", "the old teacher sold"),
        ("don\u2019t", "don't"),
        ("Café \ufb01ne", "cafe fine"),
        ("room 12", "room 12"),
        ("\u2014 …", ""),
    ],
)
def test_texts_are_normalised(text, normal):
    assert heard.normalise(text) == normal


def test_unequal_numbers_and_empty_references_are_refused():
    with pytest.raises(InputError, match="2 references but 1 hypotheses"):
        heard.character_error_rate(["a", "b"], ["a"])
    with pytest.raises(InputError, match="no letters"):
        heard.character_error_rate(["?!"], ["a"])


# ---------------------------------------------------------------- the recogniser


def test_what_cannot_be_heard_counts_as_all_deletions():
    waveforms = [
        np.zeros(0, np.float32),
        np.ones(10, np.float32),
        np.zeros(RATE, np.float32),
        np.full(RATE, np.nan, np.float32),
        np.append(np.ones(RATE, np.float32), np.inf),
    ]
    transcripts = tiny().transcribe(waveforms, RATE)
    found = heard.measure(["one two"] * 5, transcripts)
    assert found["value"] == 1.0 and found["low"] is found["high"] is None  # five utterances have no interval
    assert transcripts == [""] * 5
    assert found["utterances"] == 5


def test_bad_waveforms_are_refused():
    with pytest.raises(InputError, match=r"must have shape \[samples\], got \(2, 900\)"):
        tiny().transcribe([np.zeros((2, 900), np.float32)], RATE)
    with pytest.raises(InputError, match="positive"):
        tiny().transcribe([np.ones(900, np.float32)], 0)


def test_a_row_says_the_same_alone_in_a_batch_and_at_any_loudness():
    rng = np.random.default_rng(2)
    model = tiny()
    waveforms = [rng.normal(size=n).astype(np.float32) * 0.1 for n in (5000, 9000, 31_000, 33_000, 70_000)]
    together = model.transcribe(waveforms, RATE, rows=3)
    assert len(set(together)) > 1
    assert together == [model.transcribe([waveform], RATE)[0] for waveform in waveforms]
    assert together == model.transcribe([0.02 * waveform for waveform in waveforms], RATE, rows=3)


def test_padding_changes_nothing_in_the_network():
    graph, _ = nnx.split(nnx.eval_shape(lambda: recogniser.Network(TINY, rngs=nnx.Rngs(0))))
    network = jax.jit(nnx.merge(graph, tiny().state).__call__)
    mel_BFM = jax.random.normal(jax.random.key(0), (1, 60, TINY.bands))
    junk_BFM = jnp.concatenate([mel_BFM, 9 * jnp.ones((1, 37, TINY.bands))], 1)
    short_BTC, lengths_B = network(mel_BFM, jnp.array([50]))
    long_BTC, long_lengths_B = network(junk_BFM, jnp.array([50]))
    assert lengths_B.tolist() == long_lengths_B.tolist() == [17 * TINY.emit]
    np.testing.assert_allclose(short_BTC[:, : lengths_B[0]], long_BTC[:, : lengths_B[0]], atol=1e-5)


def test_few_shapes_are_compiled():
    model, rng = tiny(), np.random.default_rng(3)
    model.transcribe([rng.normal(size=n).astype(np.float32) for n in rng.integers(900, 3.9 * RATE, 23)], RATE)
    assert model._best_path._cache_size() == 2  # up to 2 s, up to 4 s


def test_log_mel_has_a_frame_per_hop_and_every_band_hears_its_tone():
    filters_KM = recogniser.mel_matrix(TINY)
    np.testing.assert_allclose(filters_KM.sum(0), 1, rtol=1e-6)
    time = np.arange(RATE) / RATE
    for hertz in (150, 700, 3000, 7000):
        tone_1N = np.sin(2 * np.pi * hertz * time)[None].astype(np.float32)
        mel_FM = np.asarray(recogniser.log_mel(tone_1N, TINY))[0]
        assert mel_FM.shape == (100, TINY.bands)
        nearest = np.argmax(filters_KM[round(hertz * TINY.window / RATE)])
        assert abs(int(mel_FM[50].argmax()) - int(nearest)) <= 1


def test_best_path_merges_repeats_and_drops_blanks():
    alphabet = " abc"
    assert recogniser.greedy([2, 2, 0, 2, 3, 3, 1, 1, 4], alphabet) == "aab c"
    assert recogniser.greedy([1, 0, 1, 2, 0, 1], alphabet) == "a"
    assert recogniser.greedy([], alphabet) == recogniser.greedy([0, 0], alphabet) == ""


def test_files_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "one.safetensors"
    with pytest.raises(InputError, match="cannot load the recogniser"):
        recogniser.load(path)
    training.save(path, TINY, tiny_weights(), {"cer": {}})
    recogniser.load(path)
    other = {**tiny_weights(), "head": np.zeros((16, 58), np.float32)}
    card = path.with_suffix(".json").read_text()
    training.save(path, TINY, other, {})
    path.with_suffix(".json").write_text(card)
    with pytest.raises(InputError, match="damaged"):
        recogniser.load(path)
    wrong = json.loads(card)
    wrong["config"]["width"] = 32
    path.with_suffix(".json").write_text(json.dumps(wrong))
    with pytest.raises(InputError, match="does not fit"):
        recogniser.load(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="cannot load the recogniser"):
        recogniser.load(path)


def test_the_shipped_recogniser_is_small_and_hears_sentences_it_never_heard():
    assert recogniser.WEIGHTS.stat().st_size <= 8_000_000
    model = recogniser.load()
    texts, waveforms = (a + b for a, b in zip(speak("templates", 6), speak("digits", 6)))
    transcripts = model.transcribe(waveforms, RATE)
    assert heard.measure(texts, transcripts)["value"] <= 0.06, transcripts
    import soxr

    at_24k = [soxr.resample(waveform, RATE, 24_000) for waveform in waveforms]
    assert heard.character_error_rate(texts, model.transcribe(at_24k, 24_000)) <= 0.08
    noise = [np.random.default_rng(0).normal(size=RATE).astype(np.float32) for _ in texts]
    assert heard.character_error_rate(texts, model.transcribe(noise, RATE)) > 0.75


def test_the_second_opinion_hears_digits_and_knows_its_limits():
    pytest.importorskip("pocketsphinx")
    texts, waveforms = speak("digits", 3, voices=1)
    found = heard.second_opinion(texts, waveforms, RATE)
    assert heard.character_error_rate(texts, found) < 0.6
    broken = [np.zeros(0, np.float32), np.full(RATE, np.nan, np.float32), np.zeros(RATE, np.float32)]
    assert heard.second_opinion(["one"] * 3, broken, RATE) == ["", "", ""]
    assert heard.second_opinion(["one horse"], waveforms[:1], RATE) is None


# ---------------------------------------------------------------- training it


def test_training_goes_on_with_the_batch_it_would_have_had():
    rng = np.random.default_rng(0)
    examples = [(rng.normal(size=(n, 4)).astype(np.float16), np.ones(3, np.int32)) for n in rng.integers(90, 400, 90)]
    whole = [batch for (step, batch), _ in zip(training.batches(examples, 0, 0), range(40))]
    part = [batch for (step, batch), _ in zip(training.batches(examples, 0, 25), range(15))]
    for a, b in zip(whole[25:], part, strict=True):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def test_augmentation_keeps_shapes_and_stays_finite():
    mel_BFM = jax.random.normal(jax.random.key(0), (4, 120, TINY.bands))
    out_BFM, frames_B = jax.jit(training.augment)(mel_BFM, jnp.array([120, 100, 60, 1]), jax.random.key(1))
    assert out_BFM.shape == mel_BFM.shape
    assert np.isfinite(out_BFM).all()
    assert (frames_B >= 1).all() and (frames_B <= 120).all()


def test_the_corpora_of_the_script_can_be_made():
    for corpus in training.CORPORA.values():
        assert isinstance(corpus, CorpusConfig)
        assert max(len(item["text"]) for item in synthetic.plan(corpus)) < training.CHARACTERS
