"""The campaign of damaged files: repeatable, and without a traceback (experiments/malformed_files)."""

import json
import random

import pytest

from experiments.malformed_files import artefacts, mutations, run


def test_damage_is_that_of_the_seed(tmp_path):
    for mutation in dict.fromkeys(mutations.MUTATIONS):
        left = []
        for name in ("a", "b"):
            folder = tmp_path / f"{mutation.__name__}{name}"
            (folder / "below").mkdir(parents=True)
            (folder / "config.json").write_text(json.dumps({"a": [1, {"b": "c"}], "d": None}))
            (folder / "below" / "data.bin").write_bytes(bytes(range(200)))
            mutation(folder / "config.json", folder, random.Random(3))
            left.append({str(path.relative_to(folder)): content(path) for path in sorted(folder.rglob("*"))})
        assert left[0] == left[1]
        assert left[0]["below/data.bin"] == bytes(range(200))


def content(path):
    return path.read_bytes() if path.is_file() and not path.is_symlink() else path.is_symlink()


def test_every_kind_was_tried_and_none_ended_in_a_traceback():
    saved = json.loads(run.RESULTS.read_text())
    assert saved["kinds"].keys() == artefacts.KINDS.keys()
    assert saved["all"]["inputs"] >= 5000
    assert saved["all"]["traceback"] == saved["all"]["crash"] == saved["all"]["endless"] == 0


@pytest.mark.slow
def test_no_damaged_file_ends_in_a_traceback(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["run", "--inputs", "1200", "--seed", "1717"])
    assert run.main() == 0, capsys.readouterr().out
