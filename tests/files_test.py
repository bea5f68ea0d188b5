"""A file is there whole or not at all."""

import json
import os

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from audiolm_jax import files
from audiolm_jax.errors import InputError
from audiolm_jax.training import metrics, workdir


def test_a_writer_that_raises_leaves_the_old_content_and_no_temporary(tmp_path):
    path = tmp_path / "weights.bin"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="disk"), files.replacing(path) as temporary:
        temporary.write_bytes(b"half of the n")
        raise RuntimeError("disk")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["weights.bin"]


def test_the_old_content_is_there_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "weights.bin"
    path.write_bytes(b"old")
    with files.replacing(path) as temporary:
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".tmp"
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["weights.bin"]


def test_values_that_are_no_json_leave_the_old_file(tmp_path):
    path = tmp_path / "results.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        files.write_json(path, {"a": object()})
    with pytest.raises(ValueError, match="nan"):
        files.write_json(path, {"a": float("nan")}, allow_nan=False)
    with pytest.raises(UnicodeEncodeError):
        files.write_text(path, "half \ud800")
    assert json.loads(path.read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["results.json"]


def test_text_is_utf_8_and_folders_are_made(tmp_path):
    path = tmp_path / "a" / "b.txt"
    files.write_text(path, "größer")
    assert path.read_bytes() == "größer".encode()
    files.write_json(path, ["größer"], ensure_ascii=False)
    assert path.read_text(encoding="utf-8") == '[\n  "größer"\n]\n'


def test_a_file_that_cannot_be_renamed_leaves_no_temporary(tmp_path):
    (tmp_path / "folder" / "full").mkdir(parents=True)
    with pytest.raises(OSError, match="directory"):
        files.write_text(tmp_path / "folder", "text")
    assert os.listdir(tmp_path) == ["folder"]


class Bucket(MemoryFileSystem):
    """Objects in memory under addresses s3://bucket/..., behind the same etils and fsspec as a real store."""

    protocol = "s3"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace("s3://", "memory://"))


def test_a_workdir_behind_an_address():
    fsspec.register_implementation("s3", Bucket, clobber=True)
    folder = files.place("s3://bucket/run")
    workdir.claim(folder, {"model": {"layers": 2}})
    assert json.loads((folder / "config.json").read_text()) == {"model": {"layers": 2}}
    workdir.claim(folder, {"model": {"layers": 2}})
    with pytest.raises(InputError, match=r"s3://bucket/run .* model\.layers is 2 there and 3 here"):
        workdir.claim(folder, {"model": {"layers": 3}})
    path = folder / "metrics.jsonl"
    files.write_text(path, '{"step": 1}\n{"step": 2}\n{"st')
    metrics.truncate(path, 1)
    assert path.read_text() == '{"step": 1}\n'


def test_other_paths_are_those_of_this_machine(tmp_path):
    assert files.place(tmp_path) == files.place(str(tmp_path)) == tmp_path
    assert not files.remote(tmp_path)
