"""Text: one cleaning at every entrance, so that equal words are equal tokens."""

import importlib

import numpy as np
import pytest

from audiolm_jax.data import examples
from audiolm_jax.data.config import DataConfig
from audiolm_jax.data.corpora import CorpusConfig, Reject, Utterance, checks, utterances
from audiolm_jax.errors import InputError
from audiolm_jax.serialization import text

SAME = {
    "line feeds": "one two\nthree",
    "a last line": "one two three\n",
    "lines of Windows": "one two\r\nthree\r\n",
    "tabs": "one\ttwo\tthree",
    "two spaces": "  one  two three ",
    "no-break spaces": "one\u00a0two\u202fthree",
    "thin and wide spaces": "one\u2009two\u3000three",
    "line separators": "one\u2028two\u2029three",
    "a byte order mark": "\ufeffone two three",
    "a byte order mark inside": "one two \ufeffthree",
    "zero-width spaces": "one\u200b two\u2060 three",
    "soft hyphens": "o\u00adne two thr\u00adee",
    "marks of direction": "\u200eone two\u200f \u202athree\u202c",
    "separators": "one\x1ctwo\x85three",
}


@pytest.mark.parametrize("name", SAME)
def test_the_same_words_are_the_same_text_at_every_entrance(name):
    dirty, wanted = SAME[name], "one two three"
    assert text.clean(dirty) == text.clean(wanted) == wanted
    assert checks.clean_text(dirty.encode(), required=True) == checks.clean_text(dirty, required=True) == wanted
    template = DataConfig(template="{speaker}:\n{text}")  # what stands in the template is meant
    assert examples.prompt_text(template, dirty, f" ann{chr(160)}bell") == f"ann bell:\n{wanted}"


def test_letters_are_composed_and_joiners_stay():
    assert text.clean("cafe\u0301") == "caf\u00e9"
    for kept in (
        "\u0646\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        "\U0001f468\u200d\U0001f469",
        "naïve ✓ 日本",
    ):
        assert text.clean(kept) == kept


@pytest.mark.parametrize("bad", ["one\x00two", "\x1b[31mred", "\x7f"])
def test_control_characters_are_refused(bad):
    with pytest.raises(Reject, match="control characters"):
        checks.clean_text(bad, required=True)
    assert text.control(text.clean(bad)) and not text.control(text.clean("\t\n\r\x0b\x0c"))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_file_of_text_in_an_encoding_that_names_itself(encoding):
    assert checks.clean_text("Grüße\n".encode(encoding), required=True) == "Grüße"


def test_texts_of_a_corpus_from_outside_are_cleaned(monkeypatch, tmp_path):
    module = tmp_path / "outside_corpus.py"
    module.write_text("def utterances(config, directory, progress): return list(MADE)")
    monkeypatch.syspath_prepend(str(tmp_path))
    outside_corpus = importlib.import_module("outside_corpus")

    item = Utterance("a", "train", "ann\u00a0b", "one\ntwo", (), lambda: (np.ones(3), 1))
    outside_corpus.MADE = [item]
    monkeypatch.setitem(__import__("sys").modules, "my.outside_corpus", outside_corpus)
    [found] = utterances(CorpusConfig(name="my.outside_corpus"), tmp_path)
    assert (found.text, found.speaker) == ("one two", "ann b")


def test_what_is_no_unicode_is_named():
    with pytest.raises(InputError, match="not valid Unicode at character 1"):
        text.encode("a\ud800")
