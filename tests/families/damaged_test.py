"""Damaged files of published models end in one sentence, or in a model that can be used: the campaign of
experiments/malformed_files on SODA, CSM and Qwen3-TTS, whose small checkpoints are made by the tests."""

import dataclasses

import pytest

from audiolm_jax.families import published
from audiolm_jax.serialization import pieces
from experiments.malformed_files import artefacts, run
from tests.helpers import published_qwen3_tts, published_soda

MAKERS = {"soda": published_soda.write, "qwen3_tts": published_qwen3_tts.write}


@pytest.fixture(scope="module", params=MAKERS)
def whole(request, tmp_path_factory):
    """The folder of a checkpoint, named after its family."""
    pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("damaged") / request.param
    MAKERS[request.param](folder)
    return folder


def read(folder) -> bytes:
    found = published.read(folder)
    generator = found.generator()
    generator.request("one", frames=3)
    text = generator.text.encode("one two")
    return artefacts.digest(found.spec, generator.codec.fingerprint, text, *artefacts.params(found.model))


def read_tokenizer(folder) -> bytes:
    text = pieces.read(folder / "tokenizer.json", "text.path")
    return artefacts.digest(text.size, text.encode("one two three"))


def outcomes(monkeypatch, folder, reader, name: str, count: int) -> list[tuple[str, str]]:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    kind = dataclasses.replace(artefacts.KINDS["tokenizer"], read=reader)
    monkeypatch.setitem(artefacts.KINDS, name, kind)
    right = reader(folder)
    return [run.one(name, 5, number, folder, right) for number in range(count)]


@pytest.mark.parametrize("count", [6, pytest.param(200, marks=pytest.mark.slow)])
def test_a_damaged_checkpoint_is_one_sentence_or_a_model(whole, monkeypatch, count):
    found = outcomes(monkeypatch, whole, read, whole.name, count)
    assert not [said for outcome, said in found if outcome == "traceback"]
    assert {outcome for outcome, _ in found} >= {"refused"}


@pytest.mark.parametrize("count", [40, pytest.param(500, marks=pytest.mark.slow)])
def test_a_damaged_tokenizer_is_one_sentence_or_pieces(tmp_path, monkeypatch, count):
    pytest.importorskip("tokenizers")
    folder = tmp_path / "pieces"
    folder.mkdir()
    published_soda.write_tokenizer(folder / "tokenizer.json")
    found = outcomes(monkeypatch, folder, read_tokenizer, "pieces", count)
    assert not [said for outcome, said in found if outcome == "traceback"]
    assert {outcome for outcome, _ in found} >= {"refused", "same"}
