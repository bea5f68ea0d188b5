"""Memory, collectives and least time of a compiled program.

    compute      = flops / peak of a chip
    memory       = (matrix traffic + donated arguments read and written) / bandwidth of a chip's memory
    interconnect = sum over collectives of (bytes a chip must pass on) / (bandwidth of its links)

The estimate is the largest of the three: a roofline, with everything at its peak and overlapping. 35 to 60 % of it are
good in training. The bytes that a chip passes on in a ring of n are (n-1)/n of an array for an all-gather or a
reduce-scatter, twice that for an all-reduce, all of it for a permutation, and for an all-to-all the part that leaves
the chip, over a ring on average a quarter of n hops away ("How to scale your model", chapter 3).
"""

import dataclasses
import hashlib
import importlib.metadata
import re
import time
from typing import Any

from audiolm_jax.plan import collectives, gpus, work
from audiolm_jax.plan.chips import Slice
from audiolm_jax.plan.programs import Program

UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "": 1}


def of_program(program: Program, target: Slice, known: dict[str, dict[str, Any]] | None = None) -> dict[str, Any]:
    """Memory, traffic and least time of one program, as plain JSON values. Compilation may take minutes.

    known: fingerprint -> an earlier result, with which the same program is not compiled again.
    """
    lowered = program.traced.lower()
    fingerprint = _fingerprint(lowered.as_text(), target)
    compiled = (known or {}).get(fingerprint) or _compile(lowered, target)
    result = {name: getattr(program, name) for name in ("name", "rows", "positions", "runs", "audio_seconds")}
    result |= {"fingerprint": fingerprint, **{key: compiled[key] for key in COMPILED if key in compiled}}
    if "collectives" in result:
        counted = work.count(program.traced.jaxpr)
        result["flops"], result["bytes"] = counted.flops, counted.bytes + 2 * result["memory"]["donated"]
        result["estimate"] = roofline(result["flops"], result["bytes"], result["interconnect_seconds"], target)
    return result


# The results of compilation.
COMPILED = ("memory", "sent", "collectives", "interconnect_seconds", "compile_seconds", "compile_cpu_seconds")


def _compile(lowered: Any, target: Slice) -> dict[str, Any]:
    """COMPILED; only memory and seconds if the compiler refuses a program that does not fit."""
    wall, cpu, needed = time.perf_counter(), time.process_time(), None
    try:
        compiled = lowered.compile(gpus.COMPILER_OPTIONS if target.is_gpu else None)
    except Exception as error:  # jaxlib's own error type
        needed = too_large(str(error))
        if needed is None:
            raise
    seconds = {"compile_seconds": time.perf_counter() - wall, "compile_cpu_seconds": time.process_time() - cpu}
    if needed is not None:
        return {"memory": {"total": needed, "capacity": target.chip.memory, "fits": False}, **seconds}
    sent = collectives.collectives(compiled.as_text())
    return {
        **seconds,
        "memory": memory(compiled.memory_analysis(), target.chip.memory),
        "sent": [dataclasses.asdict(one) for one in sent],
        "collectives": collectives.totals(sent),
        "interconnect_seconds": interconnect_seconds(sent, target),
    }


def _fingerprint(text: str, target: Slice) -> str:
    """A hash of a program before compilation and of the compiler's version."""
    compiler = "jax-cuda12-pjrt" if target.is_gpu else "libtpu"
    try:
        version = importlib.metadata.version(compiler)
    except importlib.metadata.PackageNotFoundError:
        version = ""
    return hashlib.sha256("\n".join([target.name, compiler, version, text]).encode()).hexdigest()[:16]


def speed(programs: list[dict[str, Any]]) -> dict[str, float]:
    """The largest speed of programs that run one after the other; {} if one of them does not fit."""
    if not all("estimate" in program for program in programs):
        return {}
    seconds = sum(program["estimate"]["seconds"] * program["runs"] for program in programs)
    return {
        "seconds": seconds,
        "positions_per_second": sum(program["positions"] * program["runs"] for program in programs) / seconds,
        "audio_seconds_per_second": programs[0]["audio_seconds"] / seconds,
    }


def memory(analysis: Any, capacity: float) -> dict[str, Any]:
    """Bytes of a chip. Donated arguments are outputs too, and count once in `total`."""
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
    """Bytes of a program that the compiler refuses as too large; None for another error.

    It has two messages: "Used 18.3G of 15.75G hbm", "... memory required ... (192.00G) exceeds".
    """
    if "RESOURCE_EXHAUSTED" not in message and "Ran out of memory" not in message:
        return None
    match = re.search(r"Used ([\d.]+)([KMGT]?) of", message) or re.search(r"\(([\d.]+)([KMGT]?)\) exceeds", message)
    return float(match[1]) * UNITS[match[2]] if match else float("nan")


def roofline(flops: float, moved: float, interconnect: float, target: Slice) -> dict[str, Any]:
    """Seconds of one run by each bound, the largest one and its name. moved: bytes; interconnect: seconds."""
    chip = target.chip
    bounds = {"compute": flops / chip.flops, "memory": moved / chip.bandwidth, "interconnect": interconnect}
    bound = max(bounds, key=bounds.get)
    return {**bounds, "seconds": bounds[bound], "bound": bound}


def interconnect_seconds(sent: list[collectives.Collective], target: Slice) -> float:
    """Seconds of all collectives of one run, one after the other."""
    return sum(one.times * passed_on(one) / target.link_bandwidth(one.group) for one in sent)


def passed_on(one: collectives.Collective) -> float:
    """Bytes that a chip passes on in one execution; the formulas at the top of this file."""
    share = (one.group - 1) / one.group
    factor = {"all-reduce": 2 * share, "collective-permute": 1.0, "all-to-all": share / 4}
    return one.bytes * factor.get(one.kind, share)
