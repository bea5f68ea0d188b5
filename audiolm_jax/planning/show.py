"""A plan as a person reads it."""

from typing import Any

GIB = 1 << 30


def header(plan: dict[str, Any]) -> str:
    return (
        f"{plan['config']}, {plan['strategy']}, {plan['parameters'] / 1e6:.0f} M parameters, on {plan['topology']} "
        f"({plan['accelerator_type']}: {plan['chips']} chips, {plan['processes']} processes), "
        f"mesh {' x '.join(f'{name} {size}' for name, size in plan['mesh'].items())}, {plan['preset']}"
    )


def program(found: dict[str, Any]) -> str:
    """A few lines about one program."""
    memory = found["memory"]
    fits = "fits" if memory["fits"] else "DOES NOT FIT"
    lines = [f"{found['name']} ({found['rows']} rows, compiled in {found['compile_seconds']:.0f} s)"]
    total = f"{memory['total'] / GIB:.2f} of {memory['capacity'] / GIB:.2f} GiB per chip: {fits}"
    if "arguments" in memory:
        parts = ", ".join(
            f"{name} {memory[name] / GIB:.2f}" for name in ("arguments", "outputs", "donated", "temporaries", "code")
        )
        total += f" ({parts})"
    lines.append(f"  memory        {total}")
    if found.get("advice"):
        lines.append(f"  change        {found['advice']}")
    if "estimate" not in found:
        return "\n".join(lines)
    lines.append(f"  work          {found['flops'] / 1e12:.3f} TFLOP and {found['bytes'] / 1e9:.2f} GB per chip and run")
    for kind, sent in found["collectives"].items():
        lines.append(f"  {kind:13s} {sent['count']} of together {sent['bytes'] / 1e9:.3f} GB")
    estimate = found["estimate"]
    bounds = ", ".join(f"{name} {milliseconds(estimate[name])}" for name in ("compute", "memory", "interconnect"))
    lines.append(f"  at least      {milliseconds(estimate['seconds'])} a run, bound by {estimate['bound']} ({bounds})")
    lines.append(
        f"  at most       {found['positions_per_second']:,.0f} positions and "
        f"{found['audio_seconds_per_second']:,.0f} seconds of audio per second"
    )
    return "\n".join(lines)


def milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms"
