"""The report: its schema is a gate, the page is complete and self-contained, and equal runs compare equal."""

import copy
import json
import re

import numpy as np
import pytest
import soundfile

from audiolm_jax.corpora.espeak import Engine
from audiolm_jax.errors import InputError
from audiolm_jax.report import charts, media, strip_times, write_report
from audiolm_jax.report.listen import heard
from audiolm_jax.report.tables import verdict

RATE = 16_000
NAMES = ("flat", "delay", "hierarchical", "masked")
SENTENCES = (
    {"text": "the old teacher sold a golden violin in vienna", "speaker": "f3"},
    {"text": "seven three zero nine", "speaker": "m3"},
)


@pytest.fixture(scope="module")
def speech():
    """{sentence: waveform float32 [samples] at 16 kHz} by espeak-ng."""
    import soxr

    engine = Engine()
    said = [engine.speak(s["text"], f"en-us+{s['speaker']}", seed=1) for s in SENTENCES]
    return [soxr.resample(one.waveform, one.sample_rate, RATE) * 0.5 for one in said]


def example(directory, speech) -> dict:
    """Results as a comparison of four strategies would hand them in, with audio files below `directory`."""
    rng = np.random.default_rng(0)
    (directory / "audio").mkdir(exist_ok=True)

    def samples(name, noise, transcripts):
        found = []
        for number, waveform in enumerate(speech):
            path = f"audio/{name}_{number}.flac"
            worse = waveform + noise * rng.normal(size=len(waveform)) * np.abs(waveform)
            soundfile.write(directory / path, worse.astype(np.float32), RATE)
            transcript = transcripts[number]
            found.append({
                "sentence": number, "file": path, "transcript": transcript,
                "cer": 0.0 if transcript == SENTENCES[number]["text"] else 0.31, "seconds": len(waveform) / RATE,
            })  # fmt: skip
        return found

    def cer(value, opinion):
        low, high = max(value - 0.03, 0.0), value + 0.04
        return {"value": value, "low": low, "high": high, "utterances": 32, "second_opinion": opinion}

    exact = [s["text"] for s in SENTENCES]
    garbled = ["the old teacher old a golden in via vienna", "seven tree zero"]
    numbers = {
        "flat": (412.3, 3.1, 0.18, 1.31, 401, 4, 0.021),
        "delay": (431.9, 3.3, 0.22, 0.36, 104, 3, 0.026),
        "hierarchical": (424.0, 3.0, 0.27, 0.33, 105, 99, 0.325),
        "masked": (447.5, 4.6, 0.41, 0.08, 20, 99, 0.082),
    }
    strategies = []
    for name in NAMES:
        bits, error, rate, rtf, passes, ahead, first = numbers[name]
        steps = 600 if name == "flat" else 2100
        curve = [[s, bits + 390 * float(np.exp(-s / (0.18 * steps))) + 2 * float(rng.normal())] for s in
                 range(0, steps + 1, steps // 30)]  # fmt: skip
        strategies.append({
            "name": name, "parameters": 1_312_000 + 9000 * len(strategies), "training_flops": 3.21e13,
            "training_steps": steps, "training_seconds": 118.0,
            "positions_per_second": 100.0 if name == "flat" else 26.0,
            "likelihood": "bound" if name == "masked" else "exact", "bits_per_second": bits,
            "bits_per_second_se": error,
            "bits_per_second_per_codebook": [0.2 * bits, 0.25 * bits, 0.27 * bits, 0.28 * bits],
            "end_bits_per_utterance": None if name == "masked" else 2.14,
            "length_bits_per_utterance": 4.6 if name == "masked" else None,
            "cer": cer(rate, 0.5 + rate),
            "cost": {"frames": 100, "predicted_passes": passes, "measured_passes": passes, "lookahead_frames": ahead,
                     "first_audio_passes": ahead + 1, "flops": 3.1e10, "kv_bytes": 2_000_000},
            "speed": {"rtf": rtf, "generation_seconds": 40 * rtf, "first_audio_seconds": first,
                      "first_audio_predicted_seconds": 0.9 * first},
            "training_curve": curve, "samples": samples(name, 0.3 + rate, exact if name == "flat" else garbled),
        })  # fmt: skip
    return {
        "schema": 1,
        "title": "Four orders on one codec grid",
        "question": "Which order of predicting codec codes models speech best for the same parameters and compute?",
        "command": "audiolm compare --config=configs/demo.py --workdir=runs/demo",
        "created": "2026-11-21T09:41:00Z",
        "commit": "0f3c2a9d1e4b5a6c7d8e9f00112233445566778",
        "versions": {"python": "3.11.7", "jax": "0.10.2", "flax": "0.12.8", "numpy": "2.4.6"},
        "hardware": {"processor": "x86_64", "cores": 2, "memory_gib": 23.5, "device": "cpu"},
        "config": {"seed": 0, "model": {"layers": 4, "width": 160, "dtype": "float32"},
                   "serialization": {"delays": [0, 1, 2, 3], "strategy": "delay"},
                   "training": {"batch": 16, "learning_rate": 0.002, "budget": {"flops": 3.2e13}}},
        "config_hash": "9f86d081884c7d659a2feaa0c55ad015",
        "corpus": {"name": "synthetic", "speakers": 8, "utterances": {"train": 1800, "valid": 100, "test": 100},
                   "hours": {"train": 0.71, "valid": 0.04, "test": 0.04}},
        "codec": {"name": "default", "fingerprint": "ab" * 32, "frame_rate": 25.0, "codebooks": 4,
                  "codebook_size": 1024, "sample_rate": RATE},
        "recogniser": {"fingerprint": "cd" * 32},
        "baselines": {"uniform_bits_per_second": 1000.0, "unigram_bits_per_second": 861.0,
                      "per_codebook_unigram_bits_per_second": [205.0, 214.0, 220.0, 222.0]},
        "sentences": [dict(s) for s in SENTENCES],
        "ceilings": {"real": {"cer": cer(0.018, 0.41), "samples": samples("real", 0.0, exact)},
                     "codec": {"cer": cer(0.031, 0.44), "samples": samples("codec", 0.1, exact)}},
        "strategies": strategies,
        "notes": ["Synthetic speech is far easier than recordings: these numbers compare orders, no more."],
    }  # fmt: skip


@pytest.fixture
def results(tmp_path, speech):
    return example(tmp_path, speech)


def test_page_is_whole_and_needs_nothing_beside_itself(results, tmp_path):
    picture = '<svg viewBox="0 0 10 10"><rect width="10" height="10"/></svg>'
    page = write_report(results, tmp_path, dict.fromkeys(NAMES, picture))
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", text)
    assert "http" not in text.replace("http-equiv", "")
    for name in NAMES:
        assert text.count(f">{name}<") >= 1
    assert text.count(picture) == len(NAMES)
    clips = len(SENTENCES) * (len(NAMES) + 2)
    assert text.count("data:audio/flac;base64,") == text.count("data:image/png;base64,") == clips
    for number in ("412.3", "861.0", "1000.0", "18.0", "±"):
        assert number in text
    assert "nan" not in re.sub(r"base64,[^\"']*", "", text).lower().split()
    assert len(text) < 15_000_000
    assert not list(tmp_path.glob("*.tmp"))


def test_results_json_holds_the_same_numbers(results, tmp_path):
    write_report(results, tmp_path)
    assert json.loads((tmp_path / "results.json").read_text(encoding="utf-8")) == results


def test_audio_in_the_page_is_the_audio_of_the_file(results, tmp_path, speech):
    import base64
    import io

    text = write_report(results, tmp_path).read_text(encoding="utf-8")
    first = base64.b64decode(re.search(r"data:audio/flac;base64,([^\"']*)", text)[1])
    waveform, rate = soundfile.read(io.BytesIO(first))
    assert rate == RATE
    np.testing.assert_allclose(waveform, speech[0], atol=2 / 32768)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda r: r.pop("codec"), "results.codec is missing"),
        (lambda r: r["codec"].update(colour="blue"), "results.codec.colour is not a key"),
        (lambda r: r["strategies"][1].update(bits_per_second=float("nan")), r"strategies\[1\].bits_per_second is nan"),
        (lambda r: r["strategies"][0]["cer"].update(value=None), r"strategies\[0\].cer.value must be a number"),
        (lambda r: r["strategies"][0].update(parameters=1.5), "parameters must be int"),
        (lambda r: r["strategies"][0].update(parameters=True), "parameters must be int"),
        (lambda r: r["strategies"][2].update(likelihood="nearly"), "'nearly', not 'exact' or 'bound'"),
        (lambda r: r["strategies"][2].update(name="flat"), "'flat' appears twice"),
        (lambda r: r["strategies"][2].update(bits_per_second=1.0), "bits per codebook sum to"),
        (lambda r: r["strategies"][3]["bits_per_second_per_codebook"].pop(), "bits of 3 codebooks, the codec has 4"),
        (lambda r: r["strategies"][3]["samples"][0].update(sentence=9), "sentence 9, which does not exist"),
        (lambda r: r["config"]["model"].update(width=float("inf")), "results.config.model.width is inf"),
        (lambda r: r["config"].update(model=np.float32(3)), "holds a float32"),
        (lambda r: r.update(strategies=[]), "nothing to report"),
        (lambda r: r.update(schema=2), "results.schema is 2"),
    ],
)
def test_results_that_break_the_schema_are_refused(results, tmp_path, change, named):
    change(results)
    with pytest.raises(InputError, match=named):
        write_report(results, tmp_path)
    assert not (tmp_path / "results.json").exists()
    assert not (tmp_path / "report.html").exists()


def test_a_missing_audio_file_is_named(results, tmp_path):
    (tmp_path / "audio" / "delay_1.flac").unlink()
    with pytest.raises(InputError, match=r"delay_1\.flac"):
        write_report(results, tmp_path)


def test_equal_runs_are_equal_without_times(results):
    other = copy.deepcopy(results)
    other["created"] = "2027-01-01T00:00:00Z"
    other["hardware"]["cores"] = 64
    other["strategies"][0]["training_seconds"] = 1.0
    other["strategies"][1]["speed"]["rtf"] = 9.0
    assert strip_times(other) == strip_times(results)
    other["strategies"][1]["bits_per_second"] += 0.01
    assert strip_times(other) != strip_times(results)
    assert strip_times({"config": {"speed": 3}}) == {"config": {"speed": 3}}


def test_one_strategy_and_no_samples_make_a_page(results, tmp_path):
    results["strategies"] = results["strategies"][:1]
    results["strategies"][0]["samples"] = []
    results["strategies"][0]["training_curve"] = []
    results["ceilings"]["real"]["samples"] = results["ceilings"]["codec"]["samples"] = []
    results["sentences"] = []
    text = write_report(results, tmp_path).read_text(encoding="utf-8")
    assert 'id="listen"' not in text
    assert 'id="results"' in text


def test_what_comes_from_outside_is_escaped(results, tmp_path):
    results["title"] = "<script>alert(1)</script>"
    results["strategies"][0]["samples"][0]["transcript"] = "<b>bold</b>"
    results["sentences"][0]["text"] = '"><img src=x>'
    results["command"] = "a && b < c"
    text = write_report(results, tmp_path).read_text(encoding="utf-8")
    assert "<script>alert" not in text and "<img src=x>" not in text and "<b>bold" not in text
    assert "a &amp;&amp; b &lt; c" in text


def test_verdict_says_when_two_are_within_the_noise(results):
    assert "flat needs the fewest bits: 412 per second of audio, 52\u00a0% below the unigram baseline" in verdict(
        results
    )
    assert "ahead of hierarchical (11.7 ± 4.3)" in verdict(results)
    results["strategies"][2]["bits_per_second"] = 413.0
    assert "within the noise of hierarchical" in verdict(results)


def test_verdict_does_not_praise_what_nobody_understands(results):
    assert "flat is understood best, 18.0\u00a0% of characters wrong" in verdict(results)
    assert "(real speech 1.8\u00a0%), within the noise of delay" in verdict(results)
    results["strategies"][0]["cer"].update(value=0.05, low=0.02, high=0.09)
    assert "(real speech 1.8\u00a0%); masked is fastest" in verdict(results)
    for strategy in results["strategies"]:
        strategy["cer"].update(value=0.93, low=0.9, high=0.97)
    assert "none can be understood yet, the closest is flat with 93.0\u00a0% of characters wrong" in verdict(results)


def test_many_sentences_are_compressed_and_the_rest_left_beside_the_page(results, tmp_path, speech):
    for number in range(2, 120):
        results["sentences"].append(dict(SENTENCES[0]))
        results["strategies"][0]["samples"].append(
            {**results["strategies"][0]["samples"][0], "sentence": number, "seconds": 60.0}
        )
    text = write_report(results, tmp_path).read_text(encoding="utf-8")
    assert len(text) < 15_000_000
    assert "data:audio/ogg;base64," in text and "data:audio/flac" not in text
    assert "more sentences lie as audio files" in text


def test_errors_in_a_transcript_are_marked():
    assert heard("one two three", "one two three") == "one two three"
    assert heard("one two three", "one too three four") == "one <ins>too</ins> three <ins>four</ins>"
    assert heard("one two three", "one three") == "one <del>two</del> three"
    assert "nothing was heard" in heard("one", "")


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3.2, 8.1), (412, 447.5), (1e-9, 2e-9), (5, 5), (0, 3.2e13)])
def test_ticks_are_round_and_inside(low, high):
    ticks = charts.nice_ticks(low, high)
    assert 2 <= len(ticks) <= 8
    assert all(low - 1e-12 <= tick <= max(high, low + abs(low) + 1) for tick in ticks)
    assert len({charts.number(tick) for tick in ticks}) == len(ticks)


@pytest.mark.parametrize("waveform", [np.zeros(0), np.zeros(5), np.zeros(RATE), np.full(900, np.nan)])
def test_odd_audio_has_a_picture_and_plays(waveform):
    import base64
    import io

    from PIL import Image

    uri = media.spectrogram_uri(waveform.astype(np.float32), RATE)
    image = Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))
    assert image.size[1] == media.BANDS and image.size[0] >= 1
    assert np.asarray(image).max() == 0  # silence is dark
    assert media.audio_uri(waveform.astype(np.float32), RATE).startswith("data:audio/flac;base64,")
