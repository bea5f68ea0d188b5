"""A plan as text."""

from typing import Any


def header(plan: dict[str, Any]) -> str:
    return (
        f"{plan['config']}, {plan['strategy']}, {plan['parameters'] / 1e6:.0f} M parameters, on {plan['topology']} "
        f"({plan['accelerator_type']}: {plan['chips']} chips, {plan['processes']} processes), "
        f"mesh {' x '.join(f'{name} {size}' for name, size in plan['mesh'].items())}, {plan['preset']}"
    )


def program(plan: dict[str, Any]) -> str:
    """A few lines about one program."""
    memory = plan["memory"]
    total = f"{size(memory['total'])} of {size(memory['capacity'])} per chip: "
    total += "fits" if memory["fits"] else "DOES NOT FIT"
    if "arguments" in memory:
        parts = ("arguments", "outputs", "donated", "temporaries", "code")
        total += f" ({', '.join(f'{name} {size(memory[name])}' for name in parts)})"
    seconds = f"{plan['compile_seconds']:.0f} s ({plan['compile_cpu_seconds']:.0f} s of one core)"
    lines = [
        f"{plan['name']}: {plan['rows']} rows, compiled in {seconds}",
        f"  memory        {total}",
    ]
    if "estimate" not in plan:
        return "\n".join(lines)
    lines.append(f"  work          {plan['flops'] / 1e9:,.1f} GFLOP, {size(plan['bytes'])} moved, per chip and run")
    for kind, sent in plan["collectives"].items():
        lines.append(f"  {kind:13s} {sent['count']} a run, {size(sent['bytes'])} in all")
    estimate = plan["estimate"]
    bounds = ", ".join(f"{name} {duration(estimate[name])}" for name in ("compute", "memory", "interconnect"))
    lines.append(f"  at least      {duration(estimate['seconds'])} a run, bound by {estimate['bound']} ({bounds})")
    return "\n".join(lines)


def speeds(plan: dict[str, Any]) -> list[str]:
    """The largest speeds of training and sampling, a line each."""
    return [
        f"{kind}: at most {speed['positions_per_second']:,.0f} positions and "
        f"{speed['audio_seconds_per_second']:,.0f} seconds of audio per second"
        for kind, speed in plan["speed"].items()
    ]


def duration(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 0.9995 else f"{1000 * seconds:.3g} ms"


def size(count: float) -> str:
    """Bytes in the largest unit that leaves a number above 1."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.4g} {unit}"
        count /= 1024
    raise AssertionError
