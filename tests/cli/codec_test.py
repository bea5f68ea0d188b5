"""`audiolm codec`: recordings to codes and back, whatever their length, rate and channels."""

import os
import resource
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import soundfile

from audiolm_jax import codecs
from audiolm_jax.cli import codec as codec_files
from audiolm_jax.cli import main
from audiolm_jax.errors import InputError
from tests.helpers.published_codecs import sound, write


def wav(path, samples, rate=16000, subtype="PCM_16"):
    soundfile.write(path, samples, rate, subtype=subtype)
    return path


def run(*arguments) -> int:
    return main.main(["codec", *map(str, arguments)])


def test_pieces_give_what_the_whole_gives(tmp_path, monkeypatch):
    """Several pieces, the last frame not whole: the codes of the codec, and a recording as long as the first one."""
    monkeypatch.setattr(codec_files, "PIECE_SECONDS", 0.13)
    samples = sound(0, 16000 + 123)
    source = wav(tmp_path / "a.wav", samples, subtype="FLOAT")
    assert run("encode", source, "--codec", "tiny", "--out", tmp_path / "codes") == 0
    codec = codecs.load("tiny")
    content = codec_files.load_codes(tmp_path / "codes" / "a.npz")
    np.testing.assert_array_equal(content["codes"], codec.encode(samples))
    assert content["fingerprint"] == codec.fingerprint and content["samples"] == len(samples)
    assert run("decode", "--out", tmp_path / "heard", tmp_path / "codes" / "a.npz") == 0
    decoded, rate = soundfile.read(tmp_path / "heard" / "a.wav", dtype="float32")
    assert rate == 16000 and len(decoded) == len(samples)
    np.testing.assert_allclose(decoded, codec.decode(content["codes"])[: len(samples)], atol=1 / 32000)


def test_stereo_seconds_keep_their_loudness(tmp_path, monkeypatch):
    """Codes and scales of a codec that normalises: decoded from the file as `decode` does with the scales."""
    monkeypatch.setattr(codec_files, "PIECE_SECONDS", 0.3)
    write(tmp_path / "weights", "encodec-chunks")
    codec = codecs.load("encodec", tmp_path / "weights")
    samples = sound(1, 2, 600) * np.linspace(0.2, 1, 600, dtype=np.float32)
    source = wav(tmp_path / "a.wav", samples.T, 600, subtype="FLOAT")
    weights = ("--codec", "encodec", "--path", tmp_path / "weights", "--out", tmp_path / "out")
    assert run("encode", *weights, source) == 0
    content = codec_files.load_codes(tmp_path / "out" / "a.npz")
    codes, scales = codec.encode_scaled(samples)
    np.testing.assert_array_equal(content["codes"], codes)
    np.testing.assert_allclose(content["scales"], scales, rtol=1e-5)
    assert run("decode", "--out", tmp_path / "heard", tmp_path / "out" / "a.npz") == 0
    decoded, _ = soundfile.read(tmp_path / "heard" / "a.wav", dtype="float32")
    expected = codec.decode(codes, scales_BC=scales)[:, :600]
    np.testing.assert_allclose(decoded.T, expected, atol=1 / 30000)


def test_other_rates_widths_and_channels(tmp_path):
    """8 bits, 44.1 kHz, stereo: mixed and resampled as a whole recording would be."""
    samples = sound(2, 44100)
    wav(tmp_path / "stereo.wav", np.stack([samples, -0.5 * samples], axis=1), 44100, "FLOAT")
    wav(tmp_path / "mono.wav", 0.25 * samples, 44100, "FLOAT")
    wav(tmp_path / "eight.wav", 0.25 * samples, 44100, "PCM_U8")
    names = ("stereo", "mono", "eight")
    assert run("encode", "--codec", "tiny", *(tmp_path / f"{name}.wav" for name in names)) == 0
    stereo, mono, eight = (codec_files.load_codes(tmp_path / f"{name}.npz") for name in names)
    assert stereo["samples"] == mono["samples"] == eight["samples"] == 16000
    np.testing.assert_array_equal(stereo["codes"], mono["codes"])
    assert (eight["codes"] == mono["codes"]).mean() > 0.7


def test_bad_files_are_named_and_the_others_done(tmp_path, capsys):
    good = wav(tmp_path / "good.wav", sound(3, 4000))
    wav(tmp_path / "six.wav", np.zeros((100, 6)))
    wav(tmp_path / "none.wav", np.zeros(0))
    wav(tmp_path / "nan.wav", np.full(100, np.nan), subtype="FLOAT")
    (tmp_path / "text.wav").write_text("hello")
    bad = {"six": "6 channels", "none": "no samples", "nan": "NaN", "text": "cannot be read", "gone": "does not exist"}
    out = tmp_path / "out"
    assert run("encode", "--codec", "tiny", "--out", out, *(tmp_path / f"{n}.wav" for n in bad), good) == 2
    output = capsys.readouterr().err.splitlines()[-1]
    assert output.startswith("audiolm: 1 of 6 files are done")
    assert all(f"{name}.wav: " in output and words in output for name, words in bad.items())
    assert [file.name for file in out.iterdir()] == ["good.npz"]
    (tmp_path / "cut.npz").write_bytes((out / "good.npz").read_bytes()[:200])
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    codes = codec_files.load_codes(out / "good.npz")
    np.savez(tmp_path / "changed.npz", **codes | {"fingerprint": "0" * 64})
    for name, words in {
        "cut": "cannot be read as an npz file",
        "other": "holds no channels, codec",
        "changed": "fingerprint 000000000000",
    }.items():
        assert run("decode", "--out", out, tmp_path / f"{name}.npz") == 2
        assert words in capsys.readouterr().err
    for arguments, words in (
        (("encode",), "at least one file"),
        (("mix", good), "invalid choice"),
        (("encode", "--codec", "mp3", good), "must be one of"),
        (("info", "--codec", "mimi"), "ships with no weights"),
        (("encode", "--codebooks", 99, good), "1 to"),
        (("encode", "--codebooks", 0, good), "codebooks=0 must be at least 1"),
        (("encode", good, out / "good.wav", "--out", out), "one file"),
        (("info", "--config.codec.name=tiny"), "takes no configuration"),
    ):
        assert run(*arguments) == 2
        assert words in capsys.readouterr().err
    with pytest.raises(InputError, match="does not exist"):
        codec_files.describe(tmp_path / "gone.wav", codecs.load("tiny"))


def test_what_prepare_rejects_as_damaged_is_not_encoded_in_silence(tmp_path, capsys):
    noise = 0.01 * sound(3, 16000)
    tone = 0.3 * np.sin(np.arange(16000) / 9) + noise
    whole = wav(tmp_path / "whole.wav", tone).read_bytes()
    (tmp_path / "cut.wav").write_bytes(whole[:20000])
    wav(tmp_path / "integers.wav", tone * 32767, subtype="FLOAT")
    refused = {"cut": "cut off: its header promises 32000 bytes", "integers": "wrong encoding"}
    files = [tmp_path / f"{name}.wav" for name in refused]
    assert run("encode", "--codec", "tiny", "--out", tmp_path / "out", *files) == 2
    said = capsys.readouterr().err
    assert all(f"{name}.wav: " in said and words in said for name, words in refused.items())
    assert not list((tmp_path / "out").iterdir())
    swapped = np.frombuffer(whole[44:], "<i2").astype(">i2").tobytes()
    (tmp_path / "swapped.wav").write_bytes(whole[:44] + swapped)
    wav(tmp_path / "clipped.wav", np.clip(9 * tone, -1, 1))
    wav(tmp_path / "silent.wav", 0 * tone)
    files = [tmp_path / f"{name}.wav" for name in ("swapped", "clipped", "silent", "whole")]
    assert run("encode", "--codec", "tiny", "--out", tmp_path / "out", *files) == 0
    said = capsys.readouterr().err
    assert "swapped.wav: loud white noise" in said and "of the samples are at full scale" in said
    assert "silent.wav" not in said and "whole.wav" not in said


def test_info_says_what_is_what(tmp_path, capsys):
    source = wav(tmp_path / "a.wav", sound(4, 8000), 8000)
    assert run("encode", "--codec", "tiny", source) == 0
    assert run("info", "--codec", "tiny", source, tmp_path / "a.npz") == 0
    output = capsys.readouterr().out
    assert "0.40 kbit/s" in output and "1.00 s at 8000 Hz" in output and "25 frames of 4 codes by tiny" in output


@pytest.mark.slow
def test_an_hour_takes_little_memory_and_its_codes_are_those_of_the_whole(tmp_path):
    """Less than two gigabytes for everything; experiments/codec_speed/hour.py measures the published codecs."""
    minute = sound(0, 60 * 16000)
    with soundfile.SoundFile(tmp_path / "hour.wav", "w", 16000, 1, "FLOAT") as file:
        for _ in range(60):
            file.write(minute)
    for command in (["encode", "hour.wav"], ["decode", "--out", "heard", "hour.npz"]):
        process = subprocess.Popen([sys.executable, "-m", "audiolm_jax", "codec", *command], cwd=tmp_path)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0 and usage.ru_maxrss < 2e9 / (1 if sys.platform == "darwin" else 1024)
    content, codec = codec_files.load_codes(tmp_path / "hour.npz"), codecs.load("default")
    assert len(content["codes"]) == 60 * 60 * 25
    np.testing.assert_array_equal(content["codes"][: 90 * 25], codec.encode(np.tile(minute, 2))[: 90 * 25])
    decoded, _ = soundfile.read(tmp_path / "heard" / "hour.wav", stop=60 * 16000, dtype="float32")
    np.testing.assert_allclose(
        decoded, codec.decode(content["codes"][: 61 * 25])[codec.delay :][: len(decoded)], atol=1e-3
    )


def coded(tmp_path, **changes):
    """A file of codes of one second with other content; None: without it."""
    if not (tmp_path / "one.npz").exists():
        assert run("encode", "--codec", "tiny", wav(tmp_path / "one.wav", sound(1, 16000))) == 0
    content = codec_files.load_codes(tmp_path / "one.npz") | changes
    path = tmp_path / "changed.npz"
    np.savez(path, **{name: value for name, value in content.items() if value is not None})
    return path


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"codec": "os.path"}, "is of codec 'os.path', which does not come with the package; name it with --codec"),
        ({"path": "somebody/codec@main"}, "was made with the weights somebody/codec@main"),
        ({"path": "/nowhere/codec"}, "was made with the weights /nowhere/codec"),
        ({"codes": np.zeros((3, 2), np.float32)}, "codes of shape (3, 2) and type float32"),
        ({"codes": np.zeros(3, np.int32)}, "codes of shape (3,)"),
        ({"codes": np.zeros((0, 3), np.int32)}, "codes of shape (0, 3)"),
        ({"codes": np.full((3, 3), 60000, np.uint16)}, "60000 is out of range"),
        ({"codes": 3}, "holds codes=3"),
        ({"samples": 0}, "holds samples=0"),
        ({"samples": 0.5}, "holds samples=0.5"),
        ({"samples": None}, "holds no samples"),
        ({"codebooks": -1}, "holds codebooks=-1"),
        ({"fingerprint": 3}, "holds fingerprint=3"),
        ({"scales": np.ones(1, np.float32)}, "holds no loudness"),
        ({"scales": np.full(1, np.nan, np.float32)}, "holds scales of shape"),
    ],
)
def test_files_of_codes_that_cannot_be_used(tmp_path, capsys, monkeypatch, changes, words):
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: pytest.fail("a repository was asked"))
    path = coded(tmp_path, **changes)
    capsys.readouterr()
    assert run("decode", "--out", tmp_path / "out", path) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"{path}: " in said and words in said
    assert not list((tmp_path / "out").iterdir())


def test_a_repository_is_asked_when_the_caller_names_it(tmp_path, capsys, monkeypatch):
    asked = []
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda name, *_, **__: asked.append(name) or 1 / 0)
    path = coded(tmp_path, codec="mimi", path="somebody/codec@main")
    assert run("decode", path) == 2 and asked == []
    assert run("decode", "--path", "another/codec@main", path) == 2 and asked == ["another/codec"]


def test_damaged_files_of_codes_are_one_sentence(tmp_path, capsys):
    content = coded(tmp_path).read_bytes()
    path = tmp_path / "bad.npz"
    for damaged in (b"", content[:40], content[: len(content) // 2], content[:100] + bytes(60) + content[160:]):
        path.write_bytes(damaged)
        assert run("decode", path) == 2
        assert f"{path}: cannot be read as an npz file" in capsys.readouterr().err
    header = b"\x93NUMPY\x01\x00v\x00{'descr': '<i4', 'fortran_order': False, 'shape': (1000000000000, 1000), }"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("codes.npy", header.ljust(127) + b"\n")
    assert run("decode", path) == 2
    assert f"{path}: cannot be read as an npz file" in capsys.readouterr().err


def test_a_full_disk_is_one_sentence_that_names_the_file(tmp_path, capsys):
    """No file grows over 4096 bytes here: writes fail as on a full disk."""
    good = wav(tmp_path / "good.wav", sound(3, 30000))
    assert run("encode", "--codec", "tiny", "--out", tmp_path / "out", good) == 0
    capsys.readouterr()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        assert run("decode", "--out", tmp_path / "heard", tmp_path / "out" / "good.npz") == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("audiolm: 0 of 1 files are done") and f"{tmp_path / 'heard' / 'good.wav'}: cannot be" in said
    assert not list((tmp_path / "heard").iterdir())
