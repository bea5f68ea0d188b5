"""Names below a folder: hidden ones, links, capitals, other suffixes, bytes that are no text."""

import json
import os

import pytest

from audiolm_jax.data.corpora import sound, tree
from tests.helpers.recordings import listed, put, reason, speech, texts

HIDDEN = (
    ".Trash-1000/files",
    ".ipynb_checkpoints",
    "__MACOSX",
    "lost+found",
    "$RECYCLE.BIN",
    ".git",
    "@eaDir",
    "a/.cache",
)


@pytest.mark.parametrize("folder", HIDDEN)
def test_what_is_hidden_is_left_out(folder, tmp_path):
    put(tmp_path, "c0.wav", text="hello")
    put(tmp_path, f"{folder}/old.wav", text="deleted")
    (tmp_path / folder / "metadata.csv").write_text("c0|copied\n")
    (tmp_path / "._c0.wav").write_bytes(b"\0\5\x16\7" * 40)
    assert texts(tmp_path) == {"c0": "hello"}


def test_a_hidden_folder_above_the_corpus_does_not_matter(tmp_path):
    put(tmp_path / ".data" / "mine", "c0.wav", text="hello")
    assert texts(tmp_path / ".data" / "mine") == {"c0": "hello"}


def test_linked_folders_are_followed_once_and_under_their_own_name(tmp_path):
    root = tmp_path / "root"
    put(root, "zoe/a.wav", text="zoe's")
    put(root, "wavs/b.wav", text="nobody's")
    put(tmp_path / "disk", "c.wav", text="far")
    put(tmp_path / "disk", "deep/d.wav", text="far and deep")
    (root / "bob").symlink_to(tmp_path / "disk")
    (root / "again").symlink_to(root / "zoe")  # before "zoe" in the order of names, and yet not its name
    (root / "loop").symlink_to(root)
    (root / "zoe" / "up").symlink_to(tmp_path)
    (tmp_path / "disk" / "back").symlink_to(root)
    (tmp_path / "disk" / "self").symlink_to(tmp_path / "disk")
    (root / "gone").symlink_to(tmp_path / "nowhere")
    items = listed(root)
    assert {key: item.speaker for key, item in items.items()} == {
        "zoe/a": "zoe",
        "wavs/b": "",
        "bob/c": "bob",
        "bob/deep/d": "deep",
    }
    linked = tmp_path / "linked"
    linked.symlink_to(root)
    assert {key: item.speaker for key, item in listed(linked).items()} == {k: i.speaker for k, i in items.items()}


def test_a_linked_recording_and_a_linked_list_are_used(tmp_path):
    put(tmp_path / "disk", "x.wav")
    (tmp_path / "disk" / "list.csv").write_text("c0|hello\n")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "c0.wav").symlink_to(tmp_path / "disk" / "x.wav")
    (tmp_path / "root" / "metadata.csv").symlink_to(tmp_path / "disk" / "list.csv")
    assert texts(tmp_path / "root") == {"c0": "hello"}


@pytest.mark.parametrize(
    ("recording", "text"),
    [("SA1.WAV", "SA1.TXT"), ("SA1.WAV", "sa1.txt"), ("a.wav", "a.wav.txt"), ("a.Flac", "a.Txt"), ("É.wav", "é.txt")],
)
def test_a_text_beside_a_recording(recording, text, tmp_path):
    put(tmp_path, f"DR1/{recording}", format=recording.rpartition(".")[2].upper())
    (tmp_path / "DR1" / text).write_text("she had")
    assert list(texts(tmp_path).values()) == ["she had"]


def test_names_that_differ_in_capitals_alone_keep_their_texts(tmp_path):
    put(tmp_path, "a.wav", text="small")
    put(tmp_path, "A.wav", text="large")
    put(tmp_path, "b.wav"), put(tmp_path, "B.wav", text="large")
    found = texts(tmp_path)
    assert found == {"a": "small", "A": "large", "B": "large"}
    assert "text is missing" in reason(listed(tmp_path)["b"])


@pytest.mark.parametrize(
    "name", ["wav", "aiff", "aif", "au", "snd", "caf", "w64", "rf64", "flac", "ogg", "oga", "opus", "mp3", "voc", "sph"]
)
def test_every_suffix_of_libsndfile_is_used(name, tmp_path):
    kind = {"aif": "AIFF", "snd": "AU", "oga": "OGG", "opus": "OGG", "sph": "NIST"}.get(name, name.upper())
    options = {"format": kind} | ({"subtype": "OPUS"} if name == "opus" else {})
    put(tmp_path, f"a.{name}", text="hello", **options)
    waveform, rate = listed(tmp_path)["a"].load()
    assert rate == 16000 and abs(len(waveform) - 16000) <= 1


@pytest.mark.parametrize("name", sorted(sound.OTHER_SUFFIXES))
def test_every_other_recording_is_named(name, tmp_path):
    put(tmp_path, "a.wav", text="hello")
    (tmp_path / f"a{name.upper()}").write_bytes(bytes(3000))
    items = listed(tmp_path)
    assert not reason(items.pop("a"))
    [item] = items.values()
    assert item.source == f"a{name.upper()}" and f"reads no {name.upper()} files" in reason(item)


def test_other_files_are_no_recordings(tmp_path):
    put(tmp_path, "a.wav", text="hello")
    for name in ("README.md", "a.json", "a.TextGrid", "cover.jpg", "a.mid", "a.npz", "wav"):
        (tmp_path / name).write_bytes(b"x")
    assert list(listed(tmp_path)) == ["a"]


def test_names_that_are_not_utf8_are_used(tmp_path):
    put(tmp_path, "good.wav", text="good")
    folder = os.fsencode(tmp_path) + b"/M\xfcller"
    os.mkdir(folder)
    put(tmp_path, "x.wav", text="hello")
    for suffix in (b".wav", b".txt"):
        os.rename(os.fsencode(tmp_path) + b"/x" + suffix, folder + b"/caf\xe9" + suffix)
    items = listed(tmp_path)
    item = items["M\\xfcller/caf\\xe9"]
    assert (item.text, item.speaker, reason(item)) == ("hello", "M\\xfcller", "")
    json.dumps([item.key, item.source]).encode("ascii")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_cannot_be_read_is_passed_over(tmp_path):
    put(tmp_path, "a.wav", text="hello")
    put(tmp_path, "closed/b.wav", speech(), text="hello")
    (tmp_path / "closed").chmod(0)
    try:
        assert list(listed(tmp_path)) == ["a"]
    finally:
        (tmp_path / "closed").chmod(0o700)


def test_the_order_is_that_of_the_paths(tmp_path):
    for name in ("b/a.wav", "a.wav", "a/b.wav", "a-b.wav", "a b/c.wav", "A.wav"):
        put(tmp_path, name, text="x")
    inside = [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*.wav"))]
    assert [str(found.inside) for found in tree.walk(tmp_path).recordings] == inside
