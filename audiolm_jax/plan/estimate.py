"""Compile a program and read it off: does it fit, what does it send, how long must it take at least.

    compute      = flops / peak of a chip
    memory       = (matrix traffic + donated arguments read and written) / bandwidth of a chip's memory
    interconnect = sum over collectives of (bytes a chip must pass on) / (bandwidth of its links)

The estimate is the largest of the three: a roofline, everything at its peak and overlapping. What is reached is less:
35 to 60 % of it in training is good. The bytes that a chip passes on in a ring of n are (n-1)/n of an array for an
all-gather or a reduce-scatter, twice that for an all-reduce, all of it for a permutation, and for an all-to-all the
share that leaves the chip, over a ring on average a quarter of n hops away ("How to scale your model", chapter 3).
"""

import dataclasses
import hashlib
import importlib.metadata
import re
import time
from typing import Any

from audiolm_jax.model.spec import Spec
from audiolm_jax.plan import collectives, gpus, work
from audiolm_jax.plan.chips import Slice
from audiolm_jax.plan.programs import Program
from audiolm_jax.training.loop import Run

UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "": 1}


def of_program(program: Program, target: Slice, known: dict[str, dict[str, Any]] | None = None) -> dict[str, Any]:
    """Memory, traffic and least time of one program, as plain JSON values. Compiling it may take minutes.

    known: fingerprint -> an earlier result; the same program is not compiled again.
    """
    lowered = program.traced.lower()
    fingerprint = _fingerprint(lowered.as_text(), target)
    compiled = (known or {}).get(fingerprint) or _compile(lowered, target)
    result = {
        "name": program.name,
        "rows": program.rows,
        "positions": program.positions,
        "runs": program.runs,
        "audio_seconds": program.audio_seconds,
        "fingerprint": fingerprint,
        **{key: compiled[key] for key in COMPILED if key in compiled},
    }
    if "collectives" in result:
        counted = work.count(program.traced.jaxpr)
        result["flops"], result["bytes"] = counted.flops, counted.bytes + 2 * result["memory"]["donated"]
        result["estimate"] = roofline(result["flops"], result["bytes"], result["interconnect_seconds"], target)
    return result


# What comes out of the compiler.
COMPILED = ("memory", "sent", "collectives", "interconnect_seconds", "compile_seconds", "compile_cpu_seconds")


def _compile(lowered: Any, target: Slice) -> dict[str, Any]:
    """COMPILED; only memory and seconds if the compiler finds that the program does not fit."""
    wall, cpu = time.perf_counter(), time.process_time()

    def clocks() -> dict[str, float]:
        return {"compile_seconds": time.perf_counter() - wall, "compile_cpu_seconds": time.process_time() - cpu}

    try:
        compiled = lowered.compile(gpus.COMPILER_OPTIONS if target.is_gpu else None)
    except Exception as error:  # jaxlib's own error type; only that of a full memory is ours to tell
        needed = too_large(str(error))
        if needed is None:
            raise
        full = {"total": needed, "capacity": target.chip.memory, "fits": False}
        return {"memory": full, **clocks()}
    seconds, sent = clocks(), collectives.collectives(compiled.as_text())
    return {
        **seconds,
        "memory": memory(compiled.memory_analysis(), target.chip.memory),
        "sent": [dataclasses.asdict(one) for one in sent],
        "collectives": collectives.totals(sent),
        "interconnect_seconds": interconnect_seconds(sent, target),
    }


def _fingerprint(text: str, target: Slice) -> str:
    """Of a program as it goes into the compiler, and of the compiler."""
    compiler = "jax-cuda12-pjrt" if target.is_gpu else "libtpu"
    try:
        version = importlib.metadata.version(compiler)
    except importlib.metadata.PackageNotFoundError:
        version = ""
    return hashlib.sha256("\n".join([target.name, compiler, version, text]).encode()).hexdigest()[:16]


def speed(programs: list[dict[str, Any]]) -> dict[str, float]:
    """What programs that run one after the other reach together at most; {} if one of them does not fit."""
    if not all("estimate" in program for program in programs):
        return {}
    seconds = sum(program["estimate"]["seconds"] * program["runs"] for program in programs)
    return {
        "seconds": seconds,
        "positions_per_second": sum(program["positions"] * program["runs"] for program in programs) / seconds,
        "audio_seconds_per_second": programs[0]["audio_seconds"] / seconds,
    }


def memory(analysis: Any, capacity: float) -> dict[str, Any]:
    """Bytes of a chip: `total` is what the program needs at once. Donated arguments are outputs too, and count once."""
    parts = {
        "arguments": analysis.argument_size_in_bytes,
        "outputs": analysis.output_size_in_bytes,
        "donated": analysis.alias_size_in_bytes,
        "temporaries": analysis.temp_size_in_bytes,
        "code": analysis.generated_code_size_in_bytes,
    }
    total = sum(parts.values()) - 2 * parts["donated"]
    return {**parts, "total": total, "capacity": capacity, "fits": total <= capacity}


def too_large(message: str) -> float | None:
    """Bytes that the compiler says a program needs, when it refuses it for them (None: it refused for something else).

    The compiler has two ways to say it: "Used 18.3G of 15.75G hbm", "... memory required ... (192.00G) exceeds".
    """
    if "RESOURCE_EXHAUSTED" not in message and "Ran out of memory" not in message:
        return None
    match = re.search(r"Used ([\d.]+)([KMGT]?) of", message) or re.search(r"\(([\d.]+)([KMGT]?)\) exceeds", message)
    return float(match[1]) * UNITS[match[2]] if match else float("nan")


def roofline(flops: float, moved: float, interconnect: float, target: Slice) -> dict[str, Any]:
    """Seconds of one run by each bound, the largest, and which one that is. moved: bytes; interconnect: seconds."""
    bounds = {
        "compute": flops / target.chip.flops,
        "memory": moved / target.chip.bandwidth,
        "interconnect": interconnect,
    }
    bound = max(bounds, key=bounds.get)
    return {**bounds, "seconds": bounds[bound], "bound": bound}


def interconnect_seconds(sent: list[collectives.Collective], target: Slice) -> float:
    """Of all collectives of one run, one after the other."""
    return sum(one.times * passed_on(one) / target.link_bandwidth(one.group) for one in sent)


def passed_on(one: collectives.Collective) -> float:
    """Bytes that a chip passes on in one execution; the formulas at the top of this file."""
    share = (one.group - 1) / one.group
    factor = {"all-reduce": 2 * share, "collective-permute": 1.0, "all-to-all": share / 4}
    return one.bytes * factor.get(one.kind, share)


def advice(program: dict[str, Any], spec: Spec, run: Run, target: Slice) -> str:
    """What to change in a configuration whose program does not fit; "" if it does."""
    if program["memory"]["fits"]:
        return ""
    sharding, accumulate, changes = run.sharding, run.training.accumulate, []
    shards = target.chips // (sharding.tensor * sharding.context)
    if program["name"] == "train step":
        if not spec.model.remat:
            changes.append("--config.model.remat=True (activations are computed again)")
        if sharding.preset == "data":
            changes.append("--config.sharding.preset=fsdp (weights and optimizer state are sharded)")
        if spec.data.batch_size // accumulate > shards:
            changes.append(f"--config.training.accumulate={2 * accumulate} (half as many rows at once)")
            changes.append(f"--config.data.batch_size={spec.data.batch_size // 2} (half the batch)")
    else:
        if program["rows"] > shards:
            changes.append(f"--rows={program['rows'] // 2} (fewer requests at once)")
        if sharding.tensor < spec.model.kv_heads and target.chips > sharding.tensor:
            changes.append(
                f"--config.sharding.preset=fsdp_tensor --config.sharding.tensor={2 * sharding.tensor} (heads sharded)"
            )
    return "; or ".join(changes) or "a larger slice"
