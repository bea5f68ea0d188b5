"""A file is there whole or not at all."""

import hashlib
import json
import os
import zlib

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from audiolm_jax import files
from audiolm_jax.errors import InputError
from audiolm_jax.training import loop, metrics


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


def test_a_link_in_the_place_of_the_temporary_file_is_not_followed(tmp_path, monkeypatch):
    (tmp_path / "precious").write_text("mine")
    monkeypatch.setattr(files.secrets, "token_hex", lambda _: "known")
    os.symlink("precious", tmp_path / "results.json.known.tmp")
    with pytest.raises(FileExistsError):
        files.write_text(tmp_path / "results.json", "theirs")
    assert (tmp_path / "precious").read_text() == "mine" and not (tmp_path / "results.json").exists()


def test_content_is_on_the_disk_before_its_name_is(tmp_path, monkeypatch):
    done, fsync, replace = [], os.fsync, os.replace

    def flushed(opened: int) -> None:
        done.append(os.readlink(f"/proc/self/fd/{opened}"))
        fsync(opened)

    def renamed(before, after) -> None:
        done.append(after.name)
        replace(before, after)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", renamed)
    files.write_text(tmp_path / "results.json", "text")
    assert done[0].startswith(f"{tmp_path}/results.json.") and done[0].endswith(".tmp")
    assert done[1:] == ["results.json", str(tmp_path)]
    assert (tmp_path / "results.json").stat().st_mode & 0o777 == 0o666 & ~umask()


def umask() -> int:
    before = os.umask(0)
    os.umask(before)
    return before


@pytest.mark.parametrize("before", [None, "empty", "other"])
def test_a_folder_is_there_whole_or_not_at_all(tmp_path, before):
    folder = tmp_path / "run"
    if before:
        folder.mkdir()
    if before == "other":
        (folder / "notes.txt").write_text("mine")
    kept = sorted(os.listdir(tmp_path)), before and sorted(os.listdir(folder))
    with pytest.raises(RuntimeError), files.building(folder) as temporary:
        (temporary / "half").write_text("")
        raise RuntimeError
    assert (sorted(os.listdir(tmp_path)), before and sorted(os.listdir(folder))) == kept
    with files.building(folder) as temporary:
        (temporary / "part").mkdir()
        (temporary / "part" / "one").write_text("1")
    assert (folder / "part" / "one").read_text() == "1" and os.listdir(tmp_path) == ["run"]
    assert sorted(os.listdir(folder)) == (["notes.txt", "part"] if before == "other" else ["part"])
    with pytest.raises(InputError, match=f"{folder}: holds part already"), files.building(folder) as temporary:
        (temporary / "part").mkdir()
    assert (folder / "part" / "one").read_text() == "1"


def test_whatever_a_library_raises_is_one_sentence_with_the_name():
    class PanicException(BaseException):
        pass

    for error, reason in (
        (zlib.error("Error -3\nwhile decompressing"), "Error -3 while decompressing"),
        (RecursionError("maximum recursion depth"), "maximum recursion depth"),
        (KeyError("frames"), "'frames' is missing"),
        (MemoryError(), "MemoryError"),
        (PermissionError(13, "Permission denied", "x"), "Permission denied"),
        (PanicException("index out of bounds"), "index out of bounds"),
    ):
        sentence = f"--from: a.bin cannot be read as a thing ({reason}); it may be truncated, or of another format"
        with pytest.raises(InputError) as caught, files.reading("a.bin", "a thing", "--from"):
            raise error
        assert str(caught.value) == sentence
    with pytest.raises(InputError) as caught, files.reading("a.bin", "a thing"):
        raise ValueError("x" * 10**6)
    assert len(str(caught.value)) < 400
    with pytest.raises(InputError, match=r"^mine$"), files.reading("a.bin", "a thing"):
        raise InputError("mine")
    for stop in (KeyboardInterrupt, SystemExit):
        with pytest.raises(stop), files.reading("a.bin", "a thing"):
            raise stop


@pytest.mark.parametrize(
    "content",
    [b"", b"[1]", b"7", b"null", b"{", b"\xff\xfe{", b"[" * 10**5, b'{"a":' * 10**5, b'{"a": ' + b"9" * 5000 + b"}"],
)
def test_json_that_is_no_object_is_one_sentence(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"^what: {path} cannot be read as JSON \(.+\); it may be ") as caught:
        files.read_json(path, "what")
    assert len(str(caught.value)) < 500
    for other in (tmp_path, tmp_path / "none"):
        with pytest.raises(InputError, match=rf"^{other} cannot be read as JSON"):
            files.read_json(other)


def test_what_a_newer_version_wrote_is_told():
    for values in ({}, {"format": 1}, {"format": 2}):
        files.not_newer(values, "a.json", 2)
    for number in (3, 0, "2", None, 10**400, [1]):
        with pytest.raises(InputError, match=r"^a.json: is of format .* newer version of audiolm_jax .* up to 2"):
            files.not_newer({"format": number}, "a.json", 2)


def test_sentences_have_an_end():
    long = str(InputError(f"--config={'a' * 5000}: there is no such file; give one of tiny"))
    assert len(long) < 2100 and long.startswith("--config=aaa") and long.endswith("give one of tiny")
    assert "characters left out) ..." in long
    assert str(InputError("x" * 2000)) == "x" * 2000


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


def test_safetensors_come_back_with_their_metadata(tmp_path):
    path = tmp_path / "x.safetensors"
    tensors = {"b": np.arange(6.0).reshape(2, 3).T, "a": np.float16(3), "c": np.zeros((0, 2), np.int32)}
    files.write_safetensors(path, tensors, {"about": "{}"})
    again, metadata = files.read_safetensors(path)
    assert list(again) == ["a", "b", "c"] and metadata == {"about": "{}"}
    for name, tensor in tensors.items():
        assert again[name].dtype == tensor.dtype
        np.testing.assert_array_equal(again[name], tensor)
    path.write_bytes(path.read_bytes()[:-1])
    for broken in (path, tmp_path, tmp_path / "none"):
        with pytest.raises(InputError, match=rf"^--from: {broken} cannot be read as safetensors") as caught:
            files.read_safetensors(broken, "--from")
        assert "\n" not in str(caught.value)


def test_a_digest_depends_on_values_names_and_arrays_alone():
    a, b = np.arange(3), np.ones(2)
    expected = hashlib.sha256(b'{"x": 1, "y": [2]}' + b"a" + a.tobytes() + b"b" + b.tobytes()).hexdigest()
    assert files.digest({"y": (2,), "x": 1}, {"b": b, "a": a}) == expected
    assert files.digest([1]) == hashlib.sha256(b"[1]").hexdigest()
    assert len({files.digest([1]), files.digest([2]), files.digest([1], {"a": a}), files.digest([1], {"b": a})}) == 4


def test_a_refused_write_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    sentence = r"^run: cannot be written \(Not a directory\); what was finished is kept"
    with pytest.raises(InputError, match=sentence), files.writing("run"):
        (tmp_path / "file" / "below").write_text("")
    with pytest.raises(InputError, match=r"^run: cannot be written \(no space\);"), files.writing("run", RuntimeError):
        raise RuntimeError("no space; a stack of calls")
    with pytest.raises(RuntimeError), files.writing("run"):
        raise RuntimeError("a defect of this program")


class Bucket(MemoryFileSystem):
    """Objects in memory under addresses s3://bucket/..., behind the same etils and fsspec as a real store."""

    protocol = "s3"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace("s3://", "memory://"))


def test_a_workdir_behind_an_address():
    fsspec.register_implementation("s3", Bucket, clobber=True)
    folder = files.place("s3://bucket/run")
    loop.claim(folder, {"model": {"layers": 2}})
    assert json.loads((folder / "config.json").read_text()) == {"model": {"layers": 2}}
    loop.claim(folder, {"model": {"layers": 2}})
    with pytest.raises(InputError, match=r"s3://bucket/run .* model\.layers is 2 there and 3 here"):
        loop.claim(folder, {"model": {"layers": 3}})
    path = folder / "metrics.jsonl"
    files.write_text(path, '{"step": 1}\n{"step": 2}\n{"st')
    metrics.truncate(path, 1)
    assert path.read_text() == '{"step": 1}\n'


def test_a_workdir_of_before_the_corpus_had_the_rate_of_its_codec_goes_on(tmp_path):
    """16000 Hz was the default then; other rates had been asked for."""
    for rate, now in ((16_000, None), (24_000, 24_000)):
        folder = tmp_path / str(rate)
        files.write_json(folder / "config.json", {"model": {}, "corpus": {"sample_rate": rate}})
        config = {"model": {}, "corpus": {"sample_rate": now, "channels": None, "long": "pauses"}}
        loop.claim(folder, config)
        with pytest.raises(InputError, match=r"corpus\.sample_rate is"):
            loop.claim(folder, {"model": {}, "corpus": {**config["corpus"], "sample_rate": 8000}})


def test_other_paths_are_those_of_this_machine(tmp_path):
    assert files.place(tmp_path) == files.place(str(tmp_path)) == tmp_path
    assert not files.remote(tmp_path)
