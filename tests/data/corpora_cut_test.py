"""Recordings over corpus.max_seconds are cut: between words, at pauses, or into windows; what cannot be is named."""

import concurrent.futures
import dataclasses
import json

import numpy as np
import pytest

from audiolm_jax.data import corpora
from audiolm_jax.data.corpora import CorpusConfig, tfds
from audiolm_jax.errors import InputError
from tests.helpers.recordings import listed, put, reason, speech

RATE = 16000
NO_TEXT = CorpusConfig(name="folder", require_text=False, max_seconds=4.0)


def phrases(seconds: float, pauses, width: float = 0.4) -> np.ndarray:
    """Sound with silence around these moments."""
    waveform = speech(seconds) + 0.001 * np.random.default_rng(0).standard_normal(int(seconds * RATE)).astype(
        np.float32
    )
    for pause in pauses:
        waveform[int((pause - width / 2) * RATE) : int((pause + width / 2) * RATE)] *= 0.001
    return waveform


def loaded(items) -> list[np.ndarray]:
    return [item.load()[0] for item in items.values()]


def manifest(root, text: str, words, **more) -> None:
    (root / "manifest.jsonl").write_text(json.dumps({"path": "a.wav", "text": text, "words": words, **more}))


def test_speech_without_a_text_is_cut_at_its_pauses(tmp_path):
    pauses = (3.1, 6.3, 8.8)  # each within 0.4 s of a quarter
    put(tmp_path, "a.wav", phrases(12.0, pauses))
    items = listed(tmp_path, NO_TEXT)
    assert list(items) == [f"a@{n:04d}" for n in range(4)] and len({item.split for item in items.values()}) == 1
    parts = loaded(items)
    assert sum(map(len, parts)) == 12 * RATE and max(map(len, parts)) <= 4 * RATE  # nothing lost, nothing twice
    whole = phrases(12.0, pauses)
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-4)
    for border, pause in zip(np.cumsum([len(part) for part in parts])[:-1] / RATE, pauses, strict=True):
        assert abs(border - pause) < 0.2


def test_without_pauses_it_is_cut_into_windows(tmp_path):
    put(tmp_path, "a.wav", phrases(12.0, []))
    parts = loaded(listed(tmp_path, NO_TEXT))
    assert [len(part) for part in parts] == [3 * RATE] * 4
    windows = loaded(listed(tmp_path, dataclasses.replace(NO_TEXT, long="windows")))
    assert [len(part) for part in windows] == [4 * RATE] * 3


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize("rate", [16000, 44100])
def test_parts_of_any_format_lie_side_by_side(suffix, rate, tmp_path):
    time_N = np.arange(9 * rate) / rate
    chirp = 0.3 * np.sin(2 * np.pi * (100 * time_N + 50 * time_N**2))
    put(tmp_path, f"a.{suffix}", chirp, rate=rate)
    whole = loaded(listed(tmp_path, dataclasses.replace(NO_TEXT, max_seconds=30.0, sample_rate=rate)))[0]
    parts = loaded(listed(tmp_path, dataclasses.replace(NO_TEXT, sample_rate=rate)))
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_a_text_is_cut_between_words_where_their_times_are_known(tmp_path):
    put(tmp_path, "a.wav", phrases(10.0, []))
    words = [["one", 0.2, 1.0], ["two", 1.1, 3.0], ["three", 3.7, 4.5], ["four", 4.6, 7.0], ["five", 7.1, 9.5]]
    manifest(tmp_path, "One, two. Three; four: five!", words, speaker="ann", split="test")
    items = list(listed(tmp_path, dataclasses.replace(NO_TEXT, require_text=True)).values())
    assert [item.text for item in items] == ["One, two.", "Three; four:", "five!"]
    assert {(item.speaker, item.split) for item in items} == {("ann", "test")}
    for item in items:
        waveform, rate = item.load()
        assert len(waveform) / rate <= 4.0
        times = [time for _, *both in item.words for time in both]
        assert times == sorted(times) and times[0] >= 0 and times[-1] <= len(waveform) / rate + 1e-3
    first = items[1].load()[0]  # begins a quarter of a second before its first word, at most
    start = 3.7 - items[1].words[0][1]
    np.testing.assert_allclose(first[:1000], phrases(10.0, [])[round(start * RATE) :][:1000], atol=1e-4)


@pytest.mark.parametrize(
    ("text", "words", "wanted"),
    [
        (
            "on the hill he stood",
            [["on the", 0.0, 3.0], ["hill", 3.1, 3.6], ["he stood", 4.5, 7.5]],
            ["on the hill", "he stood"],
        ),
        ("1 2", [["one", 0.0, 3.0], ["two", 4.0, 7.0]], ["1", "2"]),
        ("12", [["one", 0.0, 3.0], ["two", 4.0, 7.0]], ["one", "two"]),  # words and text are not as many
        ("", [["one", 0.0, 3.0], ["two", 4.0, 7.0]], ["", ""]),
    ],
)
def test_every_part_has_the_text_of_its_words(text, words, wanted, tmp_path):
    put(tmp_path, "a.wav", phrases(8.0, []))
    manifest(tmp_path, text, words)
    assert [item.text for item in listed(tmp_path, NO_TEXT).values()] == wanted


@pytest.mark.parametrize(
    ("text", "words", "said"),
    [
        ("hello", [], "its text cannot be cut without the times of its words"),
        ("a b", [["a", 0, 7.0], ["b", 7.1, 7.5]], "the times of its words do not tell where to cut it"),
        ("a b", [["a", 5, 6], ["b", 1, 2]], "the times of its words do not tell where to cut it"),
        ("a b", [["a", 5, 6], ["b", 60, 61]], "the times of its words do not tell where to cut it"),
    ],
)
def test_what_cannot_be_cut_is_named(text, words, said, tmp_path):
    put(tmp_path, "a.wav", phrases(8.0, []))
    manifest(tmp_path, text, words)
    [item] = listed(tmp_path, NO_TEXT).values()
    assert reason(item).startswith("too long: 8.0 s, corpus.max_seconds is 4.0") and said in reason(item)


def test_windows_keep_a_caption_and_reject_leaves_out(tmp_path):
    put(tmp_path, "a.wav", phrases(10.0, []), text="slow jazz")
    items = listed(tmp_path, dataclasses.replace(NO_TEXT, long="windows", require_text=True))
    assert [item.text for item in items.values()] == ["slow jazz"] * 3
    [item] = listed(tmp_path, dataclasses.replace(NO_TEXT, long="reject")).values()
    assert reason(item) == "too long: 10.0 s, corpus.max_seconds is 4.0"


def test_a_long_part_of_a_list_is_cut_like_a_recording(tmp_path):
    put(tmp_path, "a.wav", phrases(20.0, []))
    line = {"path": "a.wav", "start": 5, "end": 14}
    (tmp_path / "manifest.jsonl").write_text(json.dumps(line))
    parts = loaded(listed(tmp_path, NO_TEXT))
    np.testing.assert_allclose(np.concatenate(parts), phrases(20.0, [])[5 * RATE : 14 * RATE], atol=1e-4)
    assert len(parts) == 3


@pytest.mark.parametrize("seconds", [4.001, 4.5, 7.99, 8.0, 8.01, 400.0])
@pytest.mark.parametrize("long", ["pauses", "windows"])
def test_no_part_is_too_long_or_too_short(seconds, long, tmp_path):
    put(tmp_path, "a.wav", phrases(seconds, list(np.arange(0.7, seconds, 1.3))))
    config = dataclasses.replace(NO_TEXT, long=long)
    lengths = [len(part) / RATE for part in loaded(listed(tmp_path, config))]
    assert sum(lengths) == pytest.approx(seconds, abs=1e-3)
    assert max(lengths) <= 4.0 and min(lengths) > 1.0


def test_parts_share_the_split_of_their_recording_and_move_no_other(tmp_path):
    for n in range(30):
        put(tmp_path, f"c{n}.wav", speech(1.0 if n % 2 else 9.0))
    cut = listed(tmp_path, NO_TEXT)
    whole = listed(tmp_path, dataclasses.replace(NO_TEXT, max_seconds=30.0))
    assert {key: cut[key].split for key in cut} == {key: whole[key.partition("@")[0]].split for key in cut}
    assert len(cut) == 15 + 15 * 3


def test_the_synthetic_corpus_is_not_cut(tmp_path):
    from audiolm_jax.data.corpora import synthetic

    config = CorpusConfig(speakers=1, unseen_speakers=1, train=4, valid=0, test=0, unseen=0, max_seconds=0.5)
    reasons = [reason(item) for item in synthetic.utterances(config, tmp_path, progress=False)]
    assert len(reasons) == 4 and all(said.startswith("too long") for said in reasons)


def test_another_way_of_cutting_is_refused():
    with pytest.raises(InputError, match=r"corpus\.long=cut must be one of pauses, windows, reject"):
        CorpusConfig(long="cut")


def test_the_identity_of_old_token_sets_is_kept():
    """As `identity` gave it before recordings were cut and had channels."""
    old = CorpusConfig(name="folder", sample_rate=16000, channels=1)
    assert "long" not in corpora.identity(old) and "channels" not in corpora.identity(old)
    assert corpora.identity(old)["sample_rate"] == 16000 and corpora.identity(old)["require_text"] is True
    new = corpora.identity(dataclasses.replace(old, long="windows", channels=2, require_text=False))
    assert (new["long"], new["channels"], new["require_text"]) == ("windows", 2, False)


def test_a_part_that_comes_late_is_read_again(tmp_path):
    """Formats that are read forward: in any order, from threads, and after another recording."""
    time_N = np.arange(60 * RATE) / RATE
    for name in "ab":
        put(tmp_path, f"{name}.mp3", 0.3 * np.sin(2 * np.pi * (100 * time_N + 20 * time_N**2)))
    items = list(listed(tmp_path, NO_TEXT).values())
    parts = [item.load()[0] for item in items]
    order = np.random.default_rng(0).permutation(len(items))
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        again = list(pool.map(lambda n: items[n].load()[0], order))
    assert all(np.array_equal(parts[n], other) for n, other in zip(order, again, strict=True))


def test_records_of_a_prepared_set_are_cut_too(monkeypatch):
    whole = phrases(9.0, [])
    config = dataclasses.replace(NO_TEXT, name="tfds", tfds_sample_rate=RATE)
    for audio in (whole, np.round(whole * 32767).astype(np.int64)):
        for text, said in ((b"", ""), (b"hello", "its text cannot be cut")):
            monkeypatch.setattr(tfds, "_record", lambda *_, audio=audio, text=text: {"audio": audio, "text": text})
            items = tfds._utterances(config, "train", 0, "train_0", "train")
            if said:
                assert len(items) == 1 and said in reason(items[0])
                continue
            assert [item.key for item in items] == ["train_0@0000", "train_0@0001", "train_0@0002"]
            parts = [item.load()[0] for item in items]
            np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-3)
