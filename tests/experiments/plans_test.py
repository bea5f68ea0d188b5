"""The table of plans: docs/plans.md is made of plans.csv, and a row holds all that a plan needs to resume from it."""

from audiolm_jax.plan import chips, estimate
from experiments.plans import run


def test_the_document_is_that_of_the_table():
    rows = run.read()
    assert run.document(rows) == run.DOCUMENT.read_text(encoding="utf-8")
    assert sorted(run.plans(rows)) == sorted(name for name, *_ in run.cases(""))


def test_rows_are_read_as_they_were_written(tmp_path, monkeypatch):
    rows = run.read()
    monkeypatch.setattr(run, "ROWS_FILE", tmp_path / "plans.csv")
    run.write([run.flat(run.nested(row)) for row in rows])
    assert run.read() == rows


def test_a_row_is_not_compiled_again(monkeypatch):
    """What a known program needs of the compiler is in its row, also where it does not fit."""
    program = run.nested(run.read()[0])
    missing = {"sent"}  # the list of every collective, of which the totals are kept
    assert set(estimate.COMPILED) - program.keys() == missing
    assert program["estimate"] == estimate.roofline(
        program["flops"], program["bytes"], program["interconnect_seconds"], chips.parse(program["slice"])
    )
    full = {
        "size": "a",
        "slice": "v5e-8",
        "name": "train step",
        "memory": {"total": 2.0, "capacity": 1.0, "fits": False},
    }
    again = run.nested(run.flat(full))
    assert again["memory"] == full["memory"] and "estimate" not in again


def test_a_plan_that_is_missing_is_named():
    rows = [row for row in run.read() if (row["size"], row["strategy"], row["slice"]) != ("size_7b", "flat", "v5e-256")]
    assert run.document(rows).endswith("Not made yet: size_7b-flat-v5e-256.\n")
