"""The table of docs/plans.md: every size, strategy and slice, compiled ahead of time, training and sampling.

    make plans        # python -m experiments.plans.run

Needs libtpu and no TPU. What the compiler said of every program is a row of plans.csv beside this file; plans that have
rows are not made again, so an interrupted run resumes, and programs that several strategies share are compiled once.
--only PART makes the plans whose name holds PART, --table writes the table of those there are. About an hour of one
core from nothing.
"""

import argparse
import csv
import io
import json
from pathlib import Path
from typing import Any

from audiolm_jax import config as configs
from audiolm_jax import files
from audiolm_jax.plan import chips, collectives, estimate, plan, table

ROWS_FILE = Path(__file__).parent / "plans.csv"
DOCUMENT = Path(__file__).parents[2] / "docs" / "plans.md"
SIZES = ("size_300m", "size_1b5", "size_7b")
STRATEGIES = ("delay", "hierarchical", "masked", "flat")
SLICES = ("v5e-256", "v5p-512", "v6e-256")
ROWS = 256  # requests sampled at once

# A flat row holds the same 30 seconds in 8 positions a frame: longer rows, and one of them per chip.
FLAT = {"train": ("data.sequence_length=6400", "data.batch_size=256"), "sample": ("data.sequence_length=6400",)}
# Training shards weights and optimizer state over all chips; in sampling every chip would hold a copy of all weights.
SAMPLING = {"size_7b": ("sharding.preset=fsdp_tensor", "sharding.tensor=8")}

HEADER = f"""# Plans

What `audiolm plan` finds for the configurations `configs/size_*.py` with the default codec (8 codebooks of 1024 codes,
25 frames a second; segments of 30 seconds after 254 bytes of text). `make plans` writes this page;
`experiments/plans/run.py` names the keys that it changes. Nothing ran on these chips: the programs were compiled for
them, memory is what the compiler says, and times are floors (every part of a chip at its peak, all at the same time).

Training: rows of 1024 positions (flat: 6400). Sampling: {ROWS} requests at once, each of 30 seconds; its memory is that
of the largest program.

Over all chips of these slices, which lie along two or three axes, TPU's compiler (libtpu 0.0.42) makes an all-reduce of
every reduce-scatter, also of an explicit `jax.lax.psum_scatter`, and of an all-gather whose parts are narrower than a
tile; each sends twice as much. What is counted is what the compiler made. On v5e-8 it makes what theory asks for, which
`tests/plan/accelerators_test.py` checks.

| size | strategy | slice | training: memory per chip | a step, at least | bound by | audio per second, at most \\
| sampling: memory per chip | a batch, at least | audio per second, at most | compiled in (one core) |
|---|---|---|--:|--:|---|--:|--:|--:|--:|--:|""".replace(" \\\n", " ")


def cases(only: str) -> list[tuple[str, str, str, str]]:
    """(name, size, strategy, slice) of every plan, smallest sizes first."""
    return [
        (name, size, strategy, where)
        for size in SIZES
        for where in SLICES
        for strategy in STRATEGIES
        if only in (name := f"{size}-{strategy}-{where}")
    ]


def overrides(size: str, strategy: str, kind: str) -> list[str]:
    flat = FLAT[kind] if strategy == "flat" else ()
    return [f"serialization.strategy={strategy}", *flat, *(SAMPLING.get(size, ()) if kind == "sample" else ())]


# Columns of plans.csv: which plan, and the values of `estimate.of_program` for one of its programs (a dot is one level
# down).
# Bytes, FLOPs and seconds are those of one chip in one run of the program.
PLAN = ("size", "strategy", "slice", "kind")
TEXT = ("name", "fingerprint")
NUMBERS = ("rows", "positions", "runs", "audio_seconds", "flops", "bytes", "interconnect_seconds")
MEMORY = ("arguments", "outputs", "donated", "temporaries", "code", "total", "capacity", "fits")
SENT = tuple(f"{kind}.{part}" for kind in collectives.KINDS for part in ("count", "bytes"))
SECONDS = ("compile_seconds", "compile_cpu_seconds")
COLUMNS = (
    *PLAN,
    *TEXT,
    *NUMBERS,
    *(f"memory.{part}" for part in MEMORY),
    *(f"collectives.{x}" for x in SENT),
    *SECONDS,
)


def make(size: str, strategy: str, where: str, known: dict[str, dict]) -> list[dict[str, str]]:
    """The rows of a plan."""
    rows = []
    for kind in plan.PROGRAMS:
        config = configs.load(size, overrides(size, strategy, kind))
        configs.check(config)
        count = ROWS if kind == "sample" else None
        result = plan.plan(config, size, where, (kind,), count, lambda line: print(line, flush=True), known)
        rows += [flat({**dict(zip(PLAN, (size, strategy, where, kind))), **one}) for one in result["programs"]]
    return rows


def flat(program: dict[str, Any]) -> dict[str, str]:
    """A program as a row; a column whose value it does not have is empty."""
    row = {}
    for column in COLUMNS:
        value: Any = program
        for key in column.split("."):
            value = value.get(key, "") if isinstance(value, dict) else ""
        row[column] = value if isinstance(value, str) else json.dumps(value)
    return row


def nested(row: dict[str, str]) -> dict[str, Any]:
    """The program of a row, with its least time."""
    program: dict[str, Any] = {}
    for column, text in row.items():
        *above, key = column.split(".")
        inner = program
        for name in above if text else ():
            inner = inner.setdefault(name, {})
        if text:
            inner[key] = text if column in (*PLAN, *TEXT) else json.loads(text)
    if "flops" in program:
        program.setdefault("collectives", {})
        target = chips.parse(program["slice"])
        sizes = program["flops"], program["bytes"], program["interconnect_seconds"]
        program["estimate"] = estimate.roofline(*sizes, target)
    return program


def read() -> list[dict[str, str]]:
    """The rows of all programs that were planned."""
    if not ROWS_FILE.exists():
        return []
    with ROWS_FILE.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write(rows: list[dict[str, str]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    files.write_text(ROWS_FILE, text.getvalue())


def plans(rows: list[dict[str, str]]) -> dict[str, dict[str, list[dict]]]:
    """name -> {"train": programs, "sample": programs} of all plans that were made."""
    result: dict[str, dict[str, list[dict]]] = {}
    for program in map(nested, rows):
        name = "-".join(program[key] for key in ("size", "strategy", "slice"))
        result.setdefault(name, {}).setdefault(program["kind"], []).append(program)
    return result


def document(rows: list[dict[str, str]]) -> str:
    """docs/plans.md."""
    made, lines = plans(rows), [HEADER]
    for name, size, strategy, where in cases(""):
        if name in made:
            lines.append(line(size, strategy, where, made[name]))
    missing = [name for name, *_ in cases("") if name not in made]
    if missing:
        lines += ["", f"Not made yet: {', '.join(missing)}."]
    return "\n".join(lines) + "\n"


def line(size: str, strategy: str, where: str, programs: dict[str, list[dict]]) -> str:
    [step], sampled = programs["train"], programs["sample"]
    largest = max((program["memory"] for program in sampled), key=lambda memory: memory["total"])
    speed = {kind: estimate.speed(programs[kind]) for kind in plan.PROGRAMS}
    seconds = sum(program["compile_cpu_seconds"] for program in (step, *sampled))
    cells = [
        f"`{size}`",
        strategy,
        where,
        held(step["memory"]),
        table.duration(step["estimate"]["seconds"]) if "estimate" in step else "",
        step["estimate"]["bound"] if "estimate" in step else "",
        f"{speed['train']['audio_seconds_per_second']:,.0f} s" if speed["train"] else "",
        held(largest),
        table.duration(speed["sample"]["seconds"]) if speed["sample"] else "",
        f"{speed['sample']['audio_seconds_per_second']:,.0f} s" if speed["sample"] else "",
        f"{seconds:.0f} s",
    ]
    return f"| {' | '.join(cells)} |"


def held(memory: dict) -> str:
    text = f"{table.size(memory['total'])} of {table.size(memory['capacity'])}"
    return text if memory["fits"] else f"**{text}: does not fit**"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="PART", help="plans whose name holds this")
    parser.add_argument("--table", action="store_true", help="make none, write the table of those there are")
    options = parser.parse_args()
    for name, size, strategy, where in [] if options.table else cases(options.only):
        rows = read()
        if name in plans(rows):
            continue
        print(f"== {name}", flush=True)
        known = {row["fingerprint"]: nested(row) for row in rows}
        write(rows + make(size, strategy, where, known))
        files.write_text(DOCUMENT, document(read()))
    files.write_text(DOCUMENT, document(read()))


if __name__ == "__main__":
    main()
