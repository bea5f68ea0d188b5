"""Text as pieces: published tokenizers of any kind, byte-level ones trained on a corpus, and what they refuse."""

import copy
import dataclasses

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from audiolm_jax.errors import InputError
from audiolm_jax.serialization import pieces
from audiolm_jax.serialization import text as texts
from audiolm_jax.serialization.text import TextConfig
from audiolm_jax.serialization.vocab import TEXT_START

WORDS = ["one two three", "three two one", "the theme of the three", "naïve ✓ 日本", "\U0001f468\u200d\U0001f469"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    pieces.train(WORDS, folder, 270)
    return folder


def words(folder, **options):
    """The pieces of a tokenizer of a few whole words, <s> and </s>."""
    names = ["<unk>", "<s>", "</s>", "one", "two", "three", "é"]
    tokenizer = Tokenizer(models.WordLevel({name: n for n, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(names[1:3])
    tokenizer.enable_padding(length=9)  # what a training script saved of its batches
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    return pieces.read(path, "text.path", **options)


@pytest.mark.parametrize("said", [*WORDS, "", "never seen: ß\tŸ \U0001f600"])
def test_bytes_and_trained_pieces_come_back(trained, said):
    for vocabulary in (texts.UTF8, pieces.trained(trained, 270)):
        ids = vocabulary.encode(said)
        assert ids.dtype == np.int32 and ids.ndim == 1
        assert not ids.size or (ids.min() >= TEXT_START and ids.max() < TEXT_START + vocabulary.size)
        assert vocabulary.decode(ids) == said


def test_trained_pieces_are_fewer_than_bytes_and_always_the_same(trained, tmp_path):
    mine = pieces.trained(trained, 270)
    assert mine.size == 270 and len(mine.encode("the three")) < len("the three") / 2
    pieces.train(WORDS, tmp_path, 270)
    assert pieces.trained(tmp_path, 270) == mine and mine.spec.fingerprint
    pieces.train(["other words"], tmp_path, 270)  # what is there stays
    assert pieces.trained(tmp_path, 270) == mine
    again = copy.copy(mine)
    assert again == mine and (again.encode("two") == mine.encode("two")).all() and repr(again) == repr(mine)


def test_ids_that_are_no_text_are_left_out(tmp_path):
    every, some = words(tmp_path), words(tmp_path, structural=(1, 2), limit=6)
    assert (every.encode("ONE three") == TEXT_START + np.array([3, 5])).all() and every.size == 7
    assert (some.encode("ONE three") == TEXT_START + np.array([1, 3])).all() and some.size == 4
    assert some.decode(some.encode("one three")) == "onethree"
    assert words(tmp_path, limit=20).size == 20  # a table has more rows than its tokenizer has pieces
    for said in ("one </s> two", "é"):  # of the structure, of the codes
        assert every.encode(said).size
        with pytest.raises(InputError, match="which is no text to this model"):
            some.encode(said)


def test_a_text_without_pieces_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"the text 'one four' has 'f', for which tokenizer.json has no piece"):
        words(tmp_path).encode("one four")
    silent = Tokenizer(models.BPE({"a": 0, "b": 1}, []))  # drops what it does not know
    with pytest.raises(InputError, match="has 'c', for which"):
        pieces.Pieces(silent.to_str()).encode("abc")
    with pytest.raises(InputError, match="hold ids that are not text"):
        words(tmp_path).decode(np.array([TEXT_START + 7]))


def test_a_run_keeps_its_tokenizer_and_takes_no_other(trained, tmp_path):
    mine = pieces.trained(trained, 270)
    mine.keep(tmp_path / "run")
    mine.keep(tmp_path / "run")
    assert pieces.of_model(mine.spec, tmp_path / "run") == mine
    other = words(tmp_path)
    with pytest.raises(InputError, match="is another tokenizer than the one of this run"):
        other.keep(tmp_path / "run")
    with pytest.raises(
        InputError, match=r"tokenizer.json: has another tokenizer, sha256 .* than the one that the model"
    ):
        pieces.of_model(other.spec, tmp_path / "run")
    with pytest.raises(InputError, match=r"the text of the model: .*cannot be read as a tokenizer"):
        pieces.of_model(mine.spec, tmp_path / "nowhere")
    assert pieces.of_model(texts.UTF8.spec, tmp_path) is texts.UTF8


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"path": "a.json"}, r"text.path=a.json needs text.vocabulary=pieces"),
        ({"size": 300}, r"text.size=300 needs text.vocabulary=pieces"),
        ({"vocabulary": "pieces"}, r"needs either text.path"),
        ({"vocabulary": "pieces", "size": 300, "path": "a.json"}, r"needs either text.path"),
        ({"vocabulary": "pieces", "size": 256}, r"text.size=256 must be above 256"),
    ],
)
def test_options_that_do_not_fit_are_named(options, said):
    with pytest.raises(InputError, match=said):
        TextConfig(**options)


def test_a_configuration_opens_its_vocabulary(trained, tmp_path):
    sized = TextConfig("pieces", size=270)
    assert pieces.of_config(sized, trained) == pieces.trained(trained, 270) and pieces.size_of(sized) == 270
    named = TextConfig("pieces", path=str(trained / "tokens" / "pieces-270.json"))
    assert pieces.of_config(named, tmp_path) == pieces.trained(trained, 270) and pieces.size_of(named) == 270
    assert pieces.of_config(TextConfig(), tmp_path) is texts.UTF8 and pieces.size_of(TextConfig()) == 256
    with pytest.raises(InputError, match=r"text.size=270: there is no .*run `audiolm prepare`"):
        pieces.of_config(sized, tmp_path)
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(InputError, match=r"text.path: .*bad.json cannot be read as a tokenizer"):
        pieces.of_config(dataclasses.replace(named, path=str(tmp_path / "bad.json")), tmp_path)
    with pytest.raises(InputError, match=r"text.size=9000: the texts of the corpus give \d+ pieces"):
        pieces.train(WORDS, tmp_path, 9000)
