"""The table of docs/plans.md: every size, strategy and slice, compiled ahead of time, training and sampling.

    make plans        # python -m experiments.plans.run

Needs libtpu and no TPU. Each plan is kept beside this file as one JSON file; those that exist are not made again, so an
interrupted run goes on, and programs that several strategies share are compiled once. --only PART makes the plans whose
name holds PART, --table writes the table of those there are. About an hour of one core from nothing.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from audiolm_jax import config as configs
from audiolm_jax import files
from audiolm_jax.plan import plan as command
from audiolm_jax.plan import table as show

HERE = Path(__file__).parent
DOCUMENT = HERE.parent.parent / "docs" / "plans.md"
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
`tests/accelerators_test.py` checks.

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


def make(size: str, strategy: str, where: str, known: dict[str, dict]) -> dict[str, Any]:
    """{"train": plan, "sample": plan}, with the keys that differ from the configuration."""
    made = {}
    for kind in command.PROGRAMS:
        changes = overrides(size, strategy, kind)
        config = configs.load(size, changes)
        configs.check(config)
        rows = ROWS if kind == "sample" else None
        made[kind] = command.plan(config, size, where, (kind,), rows, lambda line: print(line, flush=True), known)
        made[kind]["overrides"] = changes
    return made


def load() -> dict[str, dict]:
    """name -> plan of all that were made."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(HERE.glob("*.json"))}


def table(plans: dict[str, dict]) -> str:
    """docs/plans.md."""
    lines = [HEADER]
    for name, size, strategy, where in cases(""):
        if name in plans:
            lines.append(row(size, strategy, where, plans[name]))
    missing = [name for name, *_ in cases("") if name not in plans]
    if missing:
        lines += ["", f"Not made yet: {', '.join(missing)}."]
    return "\n".join(lines) + "\n"


def row(size: str, strategy: str, where: str, plan: dict) -> str:
    [step], sampled = plan["train"]["programs"], plan["sample"]["programs"]
    largest = max((found["memory"] for found in sampled), key=lambda memory: memory["total"])
    speed = {kind: plan[kind]["speed"].get(kind) for kind in command.PROGRAMS}
    seconds = sum(found["compile_cpu_seconds"] for found in (step, *sampled))
    cells = [
        f"`{size}`",
        strategy,
        where,
        held(step["memory"]),
        show.duration(step["estimate"]["seconds"]) if "estimate" in step else "",
        step["estimate"]["bound"] if "estimate" in step else "",
        f"{speed['train']['audio_seconds_per_second']:,.0f} s" if speed["train"] else "",
        held(largest),
        show.duration(speed["sample"]["seconds"]) if speed["sample"] else "",
        f"{speed['sample']['audio_seconds_per_second']:,.0f} s" if speed["sample"] else "",
        f"{seconds:.0f} s",
    ]
    return f"| {' | '.join(cells)} |"


def held(memory: dict) -> str:
    text = f"{show.size(memory['total'])} of {show.size(memory['capacity'])}"
    return text if memory["fits"] else f"**{text}: does not fit**"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="PART", help="plans whose name holds this")
    parser.add_argument("--table", action="store_true", help="make none, write the table of those there are")
    options = parser.parse_args()
    for name, size, strategy, where in [] if options.table else cases(options.only):
        plans = load()
        if name in plans:
            continue
        known = {
            found["fingerprint"]: found
            for plan in plans.values()
            for part in plan.values()
            for found in part["programs"]
        }
        print(f"== {name}", flush=True)
        files.write_json(HERE / f"{name}.json", make(size, strategy, where, known))
        files.write_text(DOCUMENT, table(load()))
    files.write_text(DOCUMENT, table(load()))


if __name__ == "__main__":
    main()
