"""Two programs timed fairly on one machine: by turns, with equal threads, and only while nothing else runs.

A busy neighbour slows different programs by different factors (thread pools that spin suffer most), so a ratio
measured beside one means nothing.
"""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from audiolm_jax.errors import InputError

STAT = Path("/proc/stat")  # of Linux: ticks that the processors spent since the start of the machine


def cores() -> int:
    """How many processors this process may use (`taskset -c 1` makes it one)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def take(functions: Sequence[Callable], budget: float, least: int = 1, most: int = 15) -> list[list[float]]:
    """Seconds of each function, taking turns: `least` times, then until about `budget` seconds are spent."""
    times: list[list[float]] = [[] for _ in functions]
    start = time.perf_counter()
    while len(times[0]) < least or (len(times[0]) < most and time.perf_counter() - start < budget):
        for function, found in zip(functions, times, strict=True):
            before = time.perf_counter()
            function()
            found.append(time.perf_counter() - before)
    return times


class Others:
    """How many cores others than this process (its threads included) have used since this was made."""

    def __init__(self):
        self.before = _seconds()

    def __call__(self) -> float:
        """Processors' worth; 0 where the system does not say."""
        used, own, wall = (now - then for now, then in zip(_seconds(), self.before, strict=True))
        return max(0.0, used - own) / wall if wall > 0 else 0.0


def refuse_busy(most: float = 0.15, seconds: float = 3.0) -> float:
    """Watches the machine for some seconds; returns the cores that others use. Raises InputError above `most`."""
    others = Others()
    time.sleep(seconds)
    found = others()
    if found > most:
        raise InputError(
            f"the machine is busy: other processes use {found:.2f} cores, at most {most} are accepted; times taken now "
            "would say nothing"
        )
    return found


def _seconds() -> tuple[float, float, float]:
    """(seconds that all processors were in use, that this process used, by the clock)."""
    own = os.times()
    busy = 0.0
    if STAT.exists():
        # user, nice, system, idle, iowait, irq, softirq, steal (another machine on the same processor)
        ticks = [int(x) for x in STAT.read_text().splitlines()[0].split()[1:9]]
        busy = (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")
    return busy, own.user + own.system, time.monotonic()
