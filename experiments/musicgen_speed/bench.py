"""Time of a step of MusicGen here and in `transformers` (torch), on the same random weights of the published sizes.

    make bench                                                     every cell, a table
    python -m experiments.musicgen_speed.bench --only float32-1-   the cells whose names begin so
    python -m experiments.musicgen_speed.bench --table             the table of what was measured

A cell is a type, a batch, guidance (which doubles the rows of the model) and a context. Both programs run in this
process with as many threads, taking turns: a chunk of steps that ends at that context, sampling included (the 250 most
likely codes), from the same keys and values; after a first chunk whose logits are compared. Results are stored
in a JSON file, and not measured again. A busy machine is refused. Needs the reference: pip install
'audiolm-jax[parity]'.

The same command runs on a GPU, if jax and torch have one; `--dtypes`, `--batches`, `--references` say what. `--clip 30`
times full pieces instead of steps. Published sizes are those of facebook/musicgen-small.
"""

import argparse
import dataclasses
import gc
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

# Both programs share a GPU: neither may take all of its memory at its start.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import numpy as np

from audiolm_jax import files
from audiolm_jax.errors import InputError, exit_code
from audiolm_jax.evaluation import speed
from audiolm_jax.model import sharding
from experiments import timing

HERE = Path(__file__).parent
STATES, GUIDANCE = 64, 3.0
SMALL = {
    "vocab_size": 2048,
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "ffn_dim": 4096,
    "num_codebooks": 4,
    "max_position_embeddings": 2048,
    "pad_token_id": 2048,
    "bos_token_id": 2048,
}
TINY = SMALL | {"vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 128}
TINY |= {"pad_token_id": 300, "bos_token_id": 300}
# Largest difference of logits, in their standard deviations: the reference rounds to 16 bits in other places.
CLOSE = {"float32": 1e-3, "bfloat16": 0.5}


@dataclasses.dataclass(frozen=True)
class Cell:
    dtype: str
    batch: int
    guided: bool
    context: int

    @property
    def name(self) -> str:
        return f"{self.dtype}-{self.batch}-{'guided' if self.guided else 'plain'}-{self.context}"

    @property
    def rows(self) -> int:
        return self.batch * (1 + self.guided)


def cells(flags: argparse.Namespace) -> list[Cell]:
    numbers = [[int(x) for x in text.split(",")] for text in (flags.batches, flags.contexts)]
    return [
        cell
        for dtype in flags.dtypes.split(",")
        for batch in numbers[0]
        for guided in (False, True)
        for context in numbers[1]
        if (cell := Cell(dtype, batch, guided, context)).name.startswith(tuple(flags.only.split(",")))
    ]


def models(sizes: dict, dtype: str, frames: int):
    """(the model here, its vocabulary, the model of the reference), with the same weights, where they run."""
    import ours
    import reference
    import torch

    theirs = reference.make(sizes)
    here, vocab = ours.make(sizes, reference.tensors(theirs), frames, dtype)
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    return here, vocab, theirs.to(device=device, dtype=getattr(torch, dtype))


def inputs(sizes: dict, cell: Cell, steps: int) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """(states [M, E, D] and valid [M, E], zeros without text; keys and values [slots, H, K])."""
    rng = np.random.default_rng(1)
    states = rng.standard_normal((cell.batch, STATES, sizes["hidden_size"])).astype(np.float32)
    valid = np.ones((cell.batch, STATES), np.int64)
    if cell.guided:
        states, valid = (np.concatenate([x, np.zeros_like(x)]) for x in (states, valid))
    heads = sizes["num_attention_heads"]
    shape = (cell.context - steps, heads, sizes["hidden_size"] // heads)
    return states, valid, [rng.standard_normal(shape).astype(np.float32) for _ in "kv"]


def measured(cell: Cell, sizes: dict, opened: tuple, flags: argparse.Namespace) -> dict:
    """The row of a cell. Raises InputError if the logits differ."""
    import ours
    import reference

    model, vocab, theirs = opened
    steps = flags.steps or max(4, 16 // cell.rows)
    states, valid, block = inputs(sizes, cell, steps)
    guidance = GUIDANCE if cell.guided else 1.0
    others = timing.Others()
    here = ours.Decoder(model, vocab, states, block, cell.batch, guidance, steps, options_of(flags.option))
    codes_BNQ, logits_MQV = here.follow()
    row = {**dataclasses.asdict(cell), "steps": steps, "slots": here.slots, "compile_seconds": here.compile_seconds}
    programs, differences = {"here": here.run}, []
    for kind in flags.references.split(","):
        try:
            there = reference.Decoder(theirs, kind, states, valid, block, cell.batch, guidance, cell.context + 1)
            differences.append(float(np.abs(there.follow(codes_BNQ) - logits_MQV).max() / logits_MQV.std()))
            there.run(1)
        except Exception as error:  # a mode that this version does not have, or too little memory for it
            if kind == "dynamic":
                raise
            row[f"{kind}_failed"] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
            continue
        programs[kind] = lambda there=there: there.run(steps)
    row["difference"] = max(differences)
    if not row["difference"] < CLOSE[cell.dtype]:
        raise InputError(f"{cell.name}: logits differ by {row['difference']:.2g} standard deviations")
    programs["here"]()
    times = timing.take(list(programs.values()), flags.budget, least=flags.least, most=60)
    for name, found in zip(programs, times, strict=True):
        p50, p95 = np.percentile(np.array(found) * 1000 / steps, [50, 95])
        row |= {f"{name}_ms": float(p50), f"{name}_p95_ms": float(p95), f"{name}_best_ms": min(found) * 1000 / steps}
    return row | {
        "turns": len(times[0]),
        "bytes": here.weight_bytes() + here.cache_bytes(),
        "temp_bytes": here.compiled.memory_analysis().temp_size_in_bytes,
        "copies": ours.cache_copies(here),
        "kernels": ours.kernels(here),
        "others": others(),
    }


def clip(cell: Cell, opened: tuple, seconds: float, flags: argparse.Namespace) -> dict:
    """A full piece from nothing, as `sampling` makes it: the best of a few, after one that compiles everything."""
    import ours

    model, vocab, _ = opened
    frames = round(50 * seconds)
    run = ours.piece(model, vocab, cell.batch, GUIDANCE if cell.guided else 1.0, frames, flags.chunk)
    found = [min(timing.take([run], 0, least=least)[0]) for least in (1, 3)]
    return {
        **dataclasses.asdict(cell),
        "seconds": seconds,
        "first_seconds": found[0],
        "best_seconds": found[1],
        "ms_per_step": found[1] * 1000 / (frames + vocab.codebooks - 1),
        "times_real_time": cell.batch * seconds / found[1],
    }


def options_of(pairs: list[str]) -> dict[str, str | bool]:
    """["a=true", "b=2"] as options of the compiler."""
    split = [pair.partition("=") for pair in pairs]
    return {name: {"true": True, "false": False}.get(value, value) for name, _, value in split}


def references(row: dict) -> Iterator[str]:
    return (kind for kind in ("dynamic", "static", "compiled") if f"{kind}_ms" in row)


def share(row: dict, about: dict) -> float:
    """Of the bandwidth of the machine, what a step reaches."""
    return row["bytes"] / 1e9 / about["gigabytes_per_second"] / (row["here_ms"] / 1000)


def table(about: dict, found: dict) -> str:
    """The rows in Markdown; ratio: here / the fastest reference, medians."""
    rows = sorted(found.values(), key=lambda r: (r["dtype"] != "float32", r["batch"], r["guided"], r["context"]))
    kinds = [kind for kind in ("dynamic", "static", "compiled") if any(f"{kind}_ms" in r for r in rows)]
    head = ["type", "batch", "context", "here", *(f"torch, {kind}" for kind in kinds), "ratio", "bandwidth"]
    head += ["temp MB", "compile s"]
    lines = ["| " + " | ".join(head) + " |", "|---|---|" + "--:|" * (len(head) - 2)]
    for row in rows:
        fastest = min(row[f"{kind}_ms"] for kind in references(row))
        timed = [
            f"{row[f'{name}_ms']:.3g} ({row[f'{name}_p95_ms']:.3g})" if f"{name}_ms" in row else "-"
            for name in ("here", *kinds)
        ]
        batch = f"{row['batch']}{', guided' if row['guided'] else ''}"
        numbers = [f"{row['here_ms'] / fastest:.2f}", f"{share(row, about):.0%}"]
        numbers += [f"{row['temp_bytes'] / 1e6:.0f}", f"{row['compile_seconds']:.1f}"]
        lines.append("| " + " | ".join([row["dtype"], batch, str(row["context"]), *timed, *numbers]) + " |")
    return "\n".join(lines)


def described(bandwidth: float) -> dict:
    """The machine and the versions that times depend on."""
    import torch
    import transformers

    about = {k: v for k, v in speed.hardware().items() if k != "load_average"}
    peers = {"torch": torch.__version__, "transformers": transformers.__version__}
    return about | {"cores": timing.cores()} | peers | {"gigabytes_per_second": round(bandwidth / 1e9, 1)}


def stored(path: Path | None, about: dict, again: bool) -> dict:
    """What a file holds of this machine: {name: row}; `about` gets the larger of both bandwidths, as whatever else ran
    makes a probe smaller. Raises InputError if it is of another machine."""
    if path is None or again or not path.exists():
        return {}
    data = json.loads(path.read_text())
    other = {k for k in about if k != "gigabytes_per_second" and data["machine"].get(k) != about[k]}
    if other:
        raise InputError(
            f"{path}: was measured with another {', '.join(sorted(other))}; give another --json, or --again"
        )
    about["gigabytes_per_second"] = max(data["machine"]["gigabytes_per_second"], about["gigabytes_per_second"])
    return data["cells"]


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtypes", default="float32,bfloat16", help="types (default: %(default)s)")
    parser.add_argument("--batches", default="1,4,8", help="pieces at once (default: %(default)s)")
    parser.add_argument("--contexts", default="250,700,1500", help="positions (default: %(default)s)")
    parser.add_argument("--only", default="", help="cells whose names begin so, separated by commas")
    parser.add_argument(
        "--references", default="dynamic,static", help="caches of the reference: also compiled (default: %(default)s)"
    )
    parser.add_argument("--budget", type=float, default=10.0, help="seconds for a cell's turns (default: %(default)s)")
    parser.add_argument("--least", type=int, default=3, help="turns at least (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="of a chunk (default: 16 for one row, fewer for more, at least 4)")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        help="a further option of the compiler here, name=value; may be repeated",
    )
    parser.add_argument("--clip", type=float, help="time full pieces of this many seconds, without the reference")
    parser.add_argument("--chunk", type=int, default=32, help="steps of a chunk of --clip (default: %(default)s)")
    parser.add_argument("--layers", type=int, help="fewer than published, to try something out")
    parser.add_argument("--tiny", action="store_true", help="sizes of a toy, to try the script out")
    parser.add_argument("--json", type=Path, help="file of results (default: results-cpu.json, -gpu.json here)")
    parser.add_argument("--again", action="store_true", help="measure again what is stored already")
    parser.add_argument("--table", action="store_true", help="print the table of stored results, measure nothing")
    parser.add_argument("--anyway", action="store_true", help="also on a busy machine; nothing is stored then")
    return parser.parse_args()


def main() -> int:
    flags = parsed()
    toy = flags.tiny or flags.layers is not None
    path = flags.json or (None if toy or flags.anyway else HERE / f"results-{jax.default_backend()}.json")
    if flags.table:
        if path is None or not path.exists():
            raise InputError(f"{path}: nothing was measured yet")
        data = json.loads(path.read_text())
        print(table(data["machine"], data["cells"]))
        return 0
    try:
        import torch
        import transformers  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"{error.name} is not installed; the reference needs: pip install 'audiolm-jax[parity]'"
        ) from None
    if flags.tiny:
        flags.contexts, flags.budget = "40,60", 0.2
    sizes = TINY if flags.tiny else SMALL | ({} if flags.layers is None else {"num_hidden_layers": flags.layers})
    torch.set_num_threads(timing.cores())
    if not flags.anyway:
        timing.refuse_busy()
    bandwidth = speed.probe(size=256, megabytes=64 if flags.tiny else 1024).bytes_per_second
    about = described(bandwidth)
    found, opened, dtype = stored(path, about, flags.again), None, None
    print(json.dumps(about), flush=True)
    frames = 1500 if flags.clip is None else max(1500, round(50 * flags.clip))
    with jax.set_mesh(sharding.single_device_mesh()):
        for cell in cells(flags):
            if flags.clip is None and cell.name in found:
                continue
            if cell.dtype != dtype:
                opened = None
                gc.collect()
                opened, dtype = models(sizes, cell.dtype, frames), cell.dtype
            began = time.perf_counter()
            if flags.clip is not None:
                print(json.dumps(clip(cell, opened, flags.clip, flags)), flush=True)
                continue
            row = measured(cell, sizes, opened, flags)
            gc.collect()  # caches
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            print(f"{cell.name} ({time.perf_counter() - began:.0f} s): {shown(row, about)}", flush=True)
            found[cell.name] = row
            if path is not None:
                files.write_json(path, {"machine": about, "cells": found})
    if found and flags.clip is None:
        print(table(about, found))
    return 0


def shown(row: dict, about: dict) -> str:
    names = ["here", *references(row)]
    times = ", ".join(f"{name} {row[f'{name}_ms']:.3g} ms (best {row[f'{name}_best_ms']:.3g})" for name in names)
    failed = "".join(f"; {key}: {value}" for key, value in row.items() if key.endswith("_failed"))
    return (
        f"{times}; {share(row, about):.0%} of bandwidth; {row['copies']} cache copies, {row['kernels']} kernels; "
        f"temp {row['temp_bytes'] / 1e6:.0f} MB; compiled in {row['compile_seconds']:.1f} s; logits differ by "
        f"{row['difference']:.1g}; others use {row['others']:.2f} cores; {row['turns']} turns of {row['steps']} steps"
        f"{failed}"
    )


if __name__ == "__main__":
    sys.exit(exit_code(main))
