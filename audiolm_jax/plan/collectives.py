"""The collectives of a compiled program, from the text of its HLO (`compiled.as_text()`).

Those in a loop count as often as it runs: XLA states it on some platforms (`known_trip_count`), elsewhere the loop's
condition compares a counter from 0 with a constant, for `jax.lax.scan` and `fori_loop`. A loop whose length depends on
data counts once. TPU's compiler writes a reduce-scatter as a fusion `all-reduce-scatter` of an all-reduce and slices,
and splits some collectives into a chain of fusions with one `chain_id`; both count as one operation.
"""

import dataclasses
import math
import re

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\) -> .* \{$")
_COLLECTIVE = re.compile(rf" = (.*?) ({'|'.join(KINDS)})(-start)?\(")
_SHAPE = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")
_WHILE = re.compile(r" while\(.*condition=%?([\w.-]+), body=%?([\w.-]+)")
_CALLED = re.compile(r"\b(?:calls|to_apply|true_computation|false_computation)=%?([\w.-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective instruction."""

    kind: str  # one of KINDS
    times: int  # executions in one run of the program
    group: int  # devices of one execution
    # (element type, shape): the result of an all-gather, the operand of an all-reduce or a reduce-scatter
    arrays: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def bytes(self) -> int:
        """Of one execution."""
        return sum(math.prod(shape) * _width(element) for element, shape in self.arrays)


def collectives(hlo: str) -> list[Collective]:
    """Every collective of more than one device in a compiled module, in the order of the program."""
    entry, computations = _parse(hlo)
    devices = re.search(r"num_partitions=(\d+)", hlo)
    sent = []
    _walk(entry, 1, computations, int(devices[1]) if devices else 1, sent)
    return sent


def totals(sent: list[Collective]) -> dict[str, dict[str, int]]:
    """{kind: {"count": executions, "bytes": of all of them}} of one run, for the kinds there are."""
    return {
        kind: {
            "count": sum(c.times for c in sent if c.kind == kind),
            "bytes": sum(c.times * c.bytes for c in sent if c.kind == kind),
        }
        for kind in KINDS
        if any(c.kind == kind for c in sent)
    }


def _width(element: str) -> int:
    """Bytes of one element, at least 1."""
    return 1 if element == "pred" else max(1, int(re.search(r"\d+", element)[0]) // 8)


def _parse(hlo: str) -> tuple[str, dict[str, list[str]]]:
    """(name of the entry computation, computation -> its instructions)."""
    entry, lines, computations = "", [], {}
    for line in hlo.splitlines():
        start = _COMPUTATION.match(line)
        if start:
            lines = computations[start[2]] = []
            entry = start[2] if start[1] else entry
        elif " = " in line:
            lines.append(line)
    return entry, computations


def _walk(name: str, times: int, computations: dict[str, list[str]], devices: int, sent: list[Collective]) -> None:
    chains = set()
    for line in _with_fusions(name, computations):
        match = _COLLECTIVE.search(line)
        if match:
            chain = re.search(r"channel_id=(\d+).*chain_id=", line)
            if chain and chain[1] in chains:
                continue
            chains.add(chain and chain[1])
            one = _collective(match, line, times, devices)
            if one.group > 1:
                sent.append(one)
        loop = _WHILE.search(line)
        if loop:
            _walk(loop[2], times * _trips(line, computations.get(loop[1], [])), computations, devices, sent)
        for branches in _BRANCHES.findall(line):
            for branch in re.findall(r"[\w.-]+", branches):
                _walk(branch, times, computations, devices, sent)


def _with_fusions(name: str, computations: dict[str, list[str]]) -> list[str]:
    """The instructions of a computation and of those it calls, once per call; the all-reduce of TPU's fused
    reduce-scatter is named reduce-scatter."""
    lines = []
    for line in computations.get(name, []):
        lines.append(line)
        for called in _CALLED.findall(line):
            inner = _with_fusions(called, computations)
            if called.startswith("all-reduce-scatter"):
                inner = [x.replace(" all-reduce(", " reduce-scatter(", 1) for x in inner]
                inner = [x + " fused" if " reduce-scatter(" in x else x for x in inner]
            lines += inner
    return lines


def _collective(match: re.Match, line: str, times: int, devices: int) -> Collective:
    result, kind, start = match.groups()
    arrays = [(element, tuple(map(int, dims.split(","))) if dims else ()) for element, dims in _SHAPE.findall(result)]
    group = 2 if kind == "collective-permute" else _group(line, devices)
    if start and kind == "all-gather":  # (operands, results)
        arrays = arrays[len(arrays) // 2 :]
    elif start and kind == "collective-permute":  # (operand, result, two contexts)
        arrays = arrays[:1]
    elif kind == "reduce-scatter" and not line.endswith(" fused"):
        # The result is one part of the operand; its bytes do not depend on the axis.
        arrays = [(element, (group, *shape)) for element, shape in arrays]
    return Collective(kind, times, group, tuple(arrays))


def _group(line: str, devices: int) -> int:
    """Devices of one group, in the three notations of `replica_groups`; none means all."""
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", line)
    if listed:
        return listed[1].count(",") + 1
    iota = re.search(r"replica_groups=\[\d+,(\d+)\]", line)
    if iota:
        return int(iota[1])
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\([^{]*\))? \{([^}]*)\}", line)
    if mesh:
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'([^']+)'", mesh[2]))
    return devices


def _trips(line: str, condition: list[str]) -> int:
    known = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
    if known:
        return int(known[1])
    constant = re.compile(r"%?([\w.-]+) = s32\[\]\S* constant\((\d+)\)")
    constants = dict(match.groups() for x in condition if (match := constant.search(x)))
    for x in condition:
        compared = re.search(r" compare\(%?[\w.-]+, %?([\w.-]+)\), direction=LT", x)
        if compared and compared[1] in constants:
            return int(constants[compared[1]])
    return 1
