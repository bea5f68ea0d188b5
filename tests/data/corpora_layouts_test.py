"""Lists of texts: what has a meaning is honoured or refused by name, in every layout that is nearly a known one."""

import dataclasses
import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from audiolm_jax.errors import InputError
from tests.helpers.recordings import OWN, listed, put, reason, speech, texts

HELLO = {f"c{n}": f"hello there {n}" for n in range(4)}


def four(root: Path, folder: str = "") -> Path:
    for n in range(4):
        put(root / folder, f"c{n}.wav", speech(hertz=200 + 20 * n))
    return root


def lines(form: str, **more) -> str:
    return "".join(form.format(id=key, text=text, n=key[1:], **more) + "\n" for key, text in HELLO.items())


# Name of the list, its content, and where the recordings are.
TABLES = {
    "LJSpeech": ("metadata.csv", lines("{id}|{text}|{text}"), "wavs"),
    "numbers last": ("metadata.csv", lines("{id}|{text}|{n}"), ""),
    "one number last": ("metadata.csv", lines("{id}|{text}|7"), ""),
    "speaker second": ("metadata.csv", lines("wavs/{id}.wav|3|{text}"), "wavs"),
    "paths": ("metadata.csv", lines("wavs/{id}.wav|{text}"), "wavs"),
    "paths from here": ("metadata.csv", lines("./wavs/{id}.wav|{text}"), "wavs"),
    "paths of Windows": ("metadata.csv", lines("wavs\\{id}.wav|{text}"), "wavs"),
    "paths without suffix": ("metadata.csv", lines("wavs/{id}|{text}"), "wavs"),
    "names with suffix": ("metadata.csv", lines("{id}.wav|{text}"), "wavs"),
    "commas": ("metadata.csv", "file_name,transcription\n" + lines("{id}.wav,{text}"), ""),
    "commas and quotes": ("metadata.csv", "file_name,transcription\n" + lines('{id}.wav,"{text}"'), ""),
    "commas, no first line": ("metadata.csv", lines("{id}.wav,{text}"), ""),
    "commas, text first": ("metadata.csv", "text,file_name\n" + lines("{text},{id}.wav"), ""),
    "commas, more columns": ("metadata.csv", "file_name,gender,text\n" + lines("{id}.wav,m,{text}"), ""),
    "commas and numbers": ("metadata.csv", ",file_name,text\n" + lines("{n},{id}.wav,{text}"), ""),
    "semicolons": ("metadata.csv", "path;sentence\n" + lines("{id}.wav;{text}"), ""),
    "tabs": ("metadata.csv", "file_name\ttranscription\n" + lines("{id}.wav\t{text}"), ""),
    "tabs and quotes": ("metadata.tsv", "file_name\ttranscription\n" + lines('{id}.wav\t"{text}"'), ""),
    "tabs, no first line": ("metadata.tsv", lines("{id}\t{text}"), ""),
    "a first line with bars": ("metadata.csv", "id|text\n" + lines("{id}|{text}"), "wavs"),
    "a first line in capitals": ("metadata.csv", "File Name,Transcription\n" + lines("{id}.wav,{text}"), ""),
    "raw and normalised": ("metadata.csv", "id|raw_text|normalized_text\n" + lines("{id}|{n}|{text}"), ""),
    "JSON lines": ("metadata.jsonl", lines('{{"file_name": "{id}.wav", "transcription": "{text}"}}'), ""),
    "JSON lines in a folder": ("metadata.jsonl", lines('{{"file_name": "wavs/{id}.wav", "text": "{text}"}}'), "wavs"),
    "capitals in names": ("Metadata.CSV", lines("{id}|{text}"), "Wavs"),
    "capitals in paths": ("metadata.csv", lines("WAVS/{id}.WAV|{text}"), "wavs"),
    "spaces around": ("metadata.csv", lines("{id} | {text} "), ""),
    "line ends of Windows": ("metadata.csv", lines("{id}|{text}").replace("\n", "\r\n"), ""),
    "line ends of old Macs": ("metadata.csv", lines("{id}|{text}").replace("\n", "\r"), ""),
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", TABLES)
def test_texts_of_a_table(name, encoding, tmp_path):
    file, content, folder = TABLES[name]
    four(tmp_path, folder)
    (tmp_path / file).write_bytes(content.encode(encoding))
    if encoding == "utf-16" and file.endswith(".jsonl"):
        with pytest.raises(InputError, match=r"metadata\.jsonl is not UTF-8"):
            listed(tmp_path)
        return
    found = texts(tmp_path)
    assert {key.rpartition("/")[2]: text for key, text in found.items()} == HELLO


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_without_a_mark_is_named(encoding, tmp_path):
    (four(tmp_path) / "metadata.csv").write_bytes(lines("{id}|{text}").encode(encoding))
    with pytest.raises(InputError, match=r"metadata\.csv is in UTF-16 without a byte order mark.*save it as UTF-8"):
        listed(tmp_path)


SPEAKERS = {
    "numbers": lines("{id}|{text}|{n}"),
    "names": "".join(f"c{n}|hello there {n}|{'ann' if n < 2 else 'bob'}\n" for n in range(4)),
    "second": "".join(f"c{n}|{'ann' if n < 2 else 'bob'}|hello there {n}\n" for n in range(4)),
    "second, one of them": "".join(f"c{n}|0|hello there {n}\n" for n in range(4)),
    "named": "file_name,speaker_id,text\n" + lines("{id}.wav,s{n},{text}"),
}


@pytest.mark.parametrize("name", SPEAKERS)
def test_a_column_of_speakers_is_no_text(name, tmp_path):
    (four(tmp_path) / "metadata.csv").write_text(SPEAKERS[name])
    items = listed(tmp_path)
    assert {key: item.text for key, item in items.items()} == HELLO
    wanted = {"numbers": "0123", "names": ["ann", "ann", "bob", "bob"], "second, one of them": "0000"}
    wanted |= {"second": wanted["names"], "named": ["s0", "s1", "s2", "s3"]}
    assert [items[f"c{n}"].speaker for n in range(4)] == list(wanted[name])


@pytest.mark.parametrize("pairs", [["5|five", "7|seven", "9|nine", "5|five"], ["yes|yes", "no|no", "yes|yes", "no|no"]])
def test_single_words_are_normalised_and_no_speakers(pairs, tmp_path):
    (four(tmp_path) / "metadata.csv").write_text("".join(f"c{n}|{pair}\n" for n, pair in enumerate(pairs)))
    items = listed(tmp_path)
    assert [items[f"c{n}"].text for n in range(4)] == [pair.partition("|")[2] for pair in pairs]
    assert not any(item.speaker for item in items.values())


def test_a_bar_in_a_text_is_part_of_it(tmp_path):
    content = "c0|hello\nc1|press a|b to go on\nc2|one | two | three\nc3|5 dogs|five dogs\n"
    (four(tmp_path) / "metadata.csv").write_text(content)
    assert texts(tmp_path) == {"c0": "hello", "c1": "press a|b to go on", "c2": "one | two | three", "c3": "five dogs"}


def test_a_comma_in_a_text_is_part_of_it(tmp_path):
    content = 'file_name,text\nc0.wav,"hello, you"\nc1.wav,hello, you\nc2.wav,"say ""hi"", please"\nc3.wav,"one\ntwo"\n'
    (four(tmp_path) / "metadata.csv").write_text(content)
    assert texts(tmp_path) == {"c0": "hello, you", "c1": "hello, you", "c2": 'say "hi", please', "c3": "one two"}


REFUSED = {
    "bars in all texts": (lines("{id}|press a|b to go on {n}"), r"metadata\.csv has three columns, .*name the columns"),
    "four columns": (lines("{id}|en|ann|{text}"), r"metadata\.csv has 4 columns in most lines; name the columns"),
    "no text": ("c0\nc1\n", r"metadata\.csv has one column in every line"),
    "two texts": ("file_name,text,sentence\n" + lines("{id}.wav,a,b"), "line 1 has the texts text and sentence"),
    "too many cells": ("text,file_name\nhello, you,c0.wav\n", "line 2 has 3 columns, the first line names 2"),
    "an open quote": ('file_name,text\nc0.wav,"hello\nc1.wav,"you"\n', r"metadata\.csv line \d is not CSV"),
    "a channel": ("file_name,text,channel\nc0.wav,hello,1\n", "line 2 has channel = 1, which is not understood"),
    "an onset": ("file_name,text,onset\nc0.wav,hello,1.5\n", "line 2 has onset = 1.5, which is not understood"),
    "no number": ("file_name,text,start\nc0.wav,hello,x\n", "line 2 has start = 'x'; it must be a number"),
    "a split": ("file_name,text,split\nc0.wav,hello,_\n", "line 2 has split = '_'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_table_that_is_not_understood_is_named(name, tmp_path):
    (four(tmp_path) / "metadata.csv").write_text(REFUSED[name][0])
    with pytest.raises(InputError, match=REFUSED[name][1]):
        listed(tmp_path)


def test_two_lists_in_a_folder_are_named(tmp_path):
    (four(tmp_path) / "metadata.csv").write_text(lines("{id}|{text}"))
    (tmp_path / "Metadata.tsv").write_text(lines("{id}\t{text}"))
    with pytest.raises(InputError, match=r"Metadata\.tsv and metadata\.csv; keep one"):
        listed(tmp_path)


def test_a_list_counts_for_its_folder_and_those_below(tmp_path):
    four(tmp_path, "a/wavs")
    four(tmp_path, "b")
    (tmp_path / "a" / "metadata.csv").write_text(lines("{id}|a {text}"))
    (tmp_path / "b" / "metadata.csv").write_text(lines("{id}|b {text}"))
    wanted = {f"{place}/c{n}": f"{place[0]} hello there {n}" for place in ("a/wavs", "b") for n in range(4)}
    assert texts(tmp_path) == wanted


def test_lines_without_a_recording_are_rejected_alone(tmp_path):
    four(tmp_path)
    put(tmp_path, "x/same.wav"), put(tmp_path, "y/same.wav")
    (tmp_path / "phone.m4a").write_bytes(b"\0\0\0\x20ftypM4A ")
    more = "c9|gone\nother/c0.wav|elsewhere\nphone.m4a|hello\nsame|which\nc0|hello again\n"
    (tmp_path / "metadata.csv").write_text(lines("{id}|{text}") + more)
    reasons = {item.source: reason(item) for item in listed(tmp_path).values() if reason(item)}
    assert reasons.pop("c0.wav") == "it is listed with 2 texts (line 1, line 9)"
    assert reasons.pop("wavs/c9.wav") == reasons.pop("other/c0.wav") == "the file does not exist"
    assert "reads no .m4a files" in reasons.pop("phone.m4a")
    assert reasons.keys() == {"x/same.wav", "y/same.wav"} and "2 folders; name" in reasons["x/same.wav"]


def test_a_missing_text_names_the_list_that_was_not_read(tmp_path):
    (four(tmp_path) / "train.tsv").write_text("x")
    assert reason(listed(tmp_path)["c0"]).startswith("text is missing: the folder holds train.tsv, which is not read")
    (tmp_path / "metadata.csv").write_text("file_name,label\nc0.wav,3\n")
    assert "has the columns file_name, label, and a text is in one called text" in reason(listed(tmp_path)["c0"])


def test_ten_layouts_side_by_side(tmp_path):
    """Each in a folder of one corpus."""
    decomposed = unicodedata.normalize("NFD", "é")
    bars = "c0|hello there 0\nc1|hello|there 1\nc2|hello there 2\nc3|hello there 3\n"
    commas = "file_name,transcription\n" + lines("{id}.wav,{text}")
    layouts = {
        "parts": (
            "manifest.jsonl",
            "".join(
                json.dumps({"path": "wavs/c0.wav", "text": f"hello there {n}", "offset": n / 4, "duration": 0.25})
                + "\n"
                for n in range(4)
            ).encode(),
        ),
        "numbers": ("metadata.csv", lines("{id}|{text}|{n}").encode()),
        "bars": ("metadata.csv", bars.encode()),
        "paths": ("metadata.csv", lines("wavs/{id}.wav|{text}").encode()),
        "commas": ("metadata.csv", commas.encode()),
        "tabs": ("metadata.csv", commas.replace(",", "\t").encode()),
        "json": ("metadata.jsonl", lines('{{"file_name": "wavs/{id}.wav", "text": "{text}"}}').encode()),
        "capitals": ("METADATA.CSV", lines("{id}|{text}").encode()),
        "utf16": ("metadata.csv", lines("{id}|{text}").encode("utf-16")),
        "composed": ("metadata.csv", lines("\u00e9{id}|{text}").encode()),
    }
    for name, (file, content) in layouts.items():
        four(tmp_path, f"{name}/wavs")
        if name == "composed":
            for n in range(4):
                (tmp_path / name / "wavs" / f"c{n}.wav").rename(tmp_path / name / "wavs" / f"{decomposed}c{n}.wav")
        (tmp_path / name / file).write_bytes(content)
    found: dict[str, list[str]] = {}
    short = dataclasses.replace(OWN, min_seconds=0.1)
    for key, text in texts(tmp_path, short).items():
        found.setdefault(key.partition("/")[0], []).append(text)
    hello = sorted(HELLO.values())
    wanted = dict.fromkeys(layouts, hello) | {"bars": sorted([*hello[:1], *hello[2:], "hello|there 1"])}
    assert {name: sorted(values) for name, values in found.items()} == wanted
    assert not any(map(reason, listed(tmp_path, short).values()))


def test_a_list_may_name_recordings_elsewhere(tmp_path):
    four(tmp_path / "corpus" / "wavs")
    put(tmp_path / "far", "away.wav")
    (tmp_path / "corpus" / "lists").mkdir()
    more = f"{tmp_path}/far/away.wav|far\n{tmp_path}/corpus/wavs/c0.wav|near\n"
    (tmp_path / "corpus" / "lists" / "metadata.csv").write_text(
        lines("../wavs/{id}.wav|{text}").partition("\n")[2] + more
    )
    assert sorted(texts(tmp_path / "corpus").values()) == sorted([*list(HELLO.values())[1:], "far", "near"])


def test_only_what_a_manifest_lists_is_used(tmp_path):
    four(tmp_path / "a"), put(tmp_path / "b", "x.wav", text="beside")
    (tmp_path / "a" / "MANIFEST.JSONL").write_text('{"path": "c1.wav", "text": "hello", "speaker": "ann"}\n')
    items = listed(tmp_path)
    assert {key: (item.text, item.speaker) for key, item in items.items()} == {
        "a/c1": ("hello", "ann"),
        "b/x": ("beside", "b"),
    }


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
@pytest.mark.parametrize("kind", ["metadata.csv", "manifest.jsonl", ".txt"])
def test_composed_and_decomposed_names_are_the_same(kind, forms, tmp_path):
    here, there = (unicodedata.normalize(form, "Café Ño") for form in forms)
    put(tmp_path / here, f"{here}.wav")
    name = f"{there}/{there}.wav"
    if kind == ".txt":
        (tmp_path / here / f"{there}.txt").write_text("hello")
    else:
        line = f"{name}|hello" if kind == "metadata.csv" else json.dumps({"path": name, "text": "hello"})
        (tmp_path / kind).write_text(line + "\n")
    [(item, text)] = texts(tmp_path).items()
    assert text == "hello" and listed(tmp_path)[item].load()[0].shape == (16000,)


# Parts of recordings.

STEPS = np.concatenate([np.full(16000, 0.1 * n) for n in range(1, 7)]).astype(np.float32) * speech(
    6
)  # louder and louder
PARTS = {
    "offset and duration": ({"offset": 2, "duration": 1}, (2, 3)),
    "offset alone": ({"offset": 4}, (4, 6)),
    "start and end": ({"start": 1.5, "end": 3}, (1.5, 3)),
    "text of numbers": ({"start": "1.5", "end": "3"}, (1.5, 3)),
    "end alone": ({"end": 2}, (0, 2)),
    "duration alone": ({"duration": 2.5}, (0, 2.5)),
    "all of it": ({"offset": 0, "duration": 6}, (0, 6)),
    "all of it, rounded": ({"duration": 5.95}, (0, 6)),
    "a little more": ({"start": 5, "end": 6.05}, (5, 6)),
    "milliseconds": ({"start_ms": 1500, "end_ms": 3000}, (1.5, 3)),
    "units in names": ({"start_time": 1, "end_time": 2}, (1, 2)),
    "samples": ({"start_sample": 24000, "end_sample": 48000}, (1.5, 3)),
    "begin and stop samples": ({"begin_samples": 0, "stop_samples": 16000}, (0, 1)),
    "frames of torchaudio": ({"frame_offset": 16000, "num_frames": 16000}, (1, 2)),
    "nothing": ({"offset": None, "num_samples": 3, "channels": 2, "segment": "", "segment_id": 4}, (0, 6)),
}


@pytest.mark.parametrize("kind", ["manifest", "metadata.jsonl", "metadata.csv"])
@pytest.mark.parametrize("name", PARTS)
def test_a_part_is_cut_out(name, kind, tmp_path):
    fields, (start, stop) = PARTS[name]
    put(tmp_path, "long.wav", STEPS)
    if kind == "metadata.csv":
        cells = {"file_name": "long.wav", "text": "hello", **fields}
        rows = [cells, ["" if value is None else str(value) for value in cells.values()]]
        (tmp_path / kind).write_text("\n".join("|".join(row) for row in rows))
    else:
        line = {"audio_filepath" if kind == "manifest" else "file_name": "long.wav", "text": "hello", **fields}
        (tmp_path / kind.replace("manifest", "manifest.jsonl")).write_text(json.dumps(line))
    waveform, _ = listed(tmp_path)["long"].load()
    whole = np.round(STEPS * 32768) / 32768
    np.testing.assert_allclose(waveform, whole[round(start * 16000) : round(stop * 16000)], atol=1e-4)


def test_several_parts_of_one_recording(tmp_path):
    put(tmp_path, "a/long.wav", STEPS)
    lines = [{"path": "a/long.wav", "text": f"part {n}", "start": n, "end": n + 1} for n in (0, 2, 4)]
    lines += [{"path": "a/long.wav", "text": "named", "start": 1, "end": 2, "key": "mine"}, lines[0]]
    (tmp_path / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    items = listed(tmp_path)
    wanted = {f"a/long@{n}.000-{n + 1}.000": f"part {n}" for n in (0, 2, 4)} | {"mine": "named"}
    assert {key: item.text for key, item in items.items() if not reason(item)} == wanted
    assert "more than once" in reason(items["a/long.wav (line 5)"])
    assert len({item.split for item in items.values()}) == 1  # no part of a training recording is tested on


def test_words_of_a_part_are_timed_from_its_start(tmp_path):
    put(tmp_path, "long.wav", STEPS)
    words = [["three", 2.1, 2.5], ["four", 2.5, 3.9]]
    lines = [
        {"path": "long.wav", "text": "x", "start": 2, "end": end, "words": words, "key": str(end)} for end in (4, 3)
    ]
    (tmp_path / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    items = listed(tmp_path)
    assert items["4"].words == (("three", 0.1, 0.5), ("four", 0.5, 1.9))
    assert "words lie outside of its part" in reason(items["3"])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"duration": 99}, "from 0.00 s to 99.00 s, the recording has 6.00 s"),
        ({"offset": 7}, "from 7.00 s to its end, the recording has 6.00 s"),
        ({"start": 16000, "end": 32000}, "from 16000.00 s to 32000.00 s"),  # samples that are called seconds
        ({"start": 5, "end": 5.1}, "too short: 0.100 s"),
    ],
)
def test_a_part_that_is_not_there_is_rejected_alone(fields, said, tmp_path):
    put(tmp_path, "long.wav", STEPS), put(tmp_path, "good.wav")
    lines = [{"path": "long.wav", "text": "hello", **fields}, {"path": "good.wav", "text": "good"}]
    (tmp_path / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    items = listed(tmp_path)
    assert said in reason(items["long"]) and not reason(items["good"])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"start": 3, "end": 2}, "names a part from 3 to 2"),
        ({"start": -1}, "start = '-1'; it must be a number"),
        ({"start": [1, 2]}, r"start = '\[1, 2\]'; it must be a number"),
        ({"start": True}, "start = 'True'"),
        ({"start": "nan"}, "start = 'nan'"),
        ({"start": 10**400}, "start = '1000"),
        ({"start": 1, "offset": 1}, "has both start and offset"),
        ({"start": 1, "end_sample": 32000}, "start and end_sample in seconds and in samples"),
        ({"segment": [1, 2]}, r"segment = \[1, 2\], which is not understood"),
        ({"channel": 1}, "channel = 1, which is not understood"),
        ({"begin_frame_ms": 1}, "begin_frame_ms = 1, which is not understood"),
    ],
)
def test_a_part_that_is_not_understood_is_named(fields, said, tmp_path):
    line = {"path": "long.wav", "text": "hello", **fields}
    (tmp_path / "manifest.jsonl").write_text(json.dumps(line))
    with pytest.raises(InputError, match=f"line 1.*{said}"):
        listed(tmp_path)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ('"n": ' + "9" * 5000, "is not JSON"),
        ('"n": ' + "[" * 100000, "nested too deep"),
        ('"words": [["x", 1' + "0" * 400 + ", 2]]", "has words"),
        ('"words": [["x", NaN, 2]]', "has words"),
        ('"split": "_"', "split = '_'"),
        ('"split": "all"', "split = 'all'"),
    ],
)
def test_odd_json_is_one_sentence(more, said, tmp_path):
    (tmp_path / "manifest.jsonl").write_text('{"path": "a.wav", "text": "x", ' + more + "}\n")
    with pytest.raises(InputError, match=f"line 1.*{said}"):
        listed(tmp_path)


def test_names_that_are_no_unicode_are_rejected_alone(tmp_path):
    put(tmp_path, "a.wav")
    lines = [
        '{"path": "a.wav", "text": "x", "key": "\\ud800"}',
        '{"path": "\\udfff.wav", "text": "x"}',
        '{"path": "a.wav", "text": "x", "key": "good"}',
        '{"path": "a.wav", "text": "x", "key": "who", "speaker": "\\ud800"}',
        '{"path": "a\\u0000.wav", "text": "x"}',
        json.dumps({"path": "x" * 5000 + ".wav", "text": "x"}),
    ]
    (tmp_path / "manifest.jsonl").write_text("\n".join(lines))
    items = listed(tmp_path)
    assert [key for key, item in items.items() if not reason(item)] == ["good"]
    assert "not valid Unicode" in reason(items["\\ud800"]) and "not valid Unicode" in reason(items["who"])
