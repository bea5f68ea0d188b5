"""Chips and slices: the numbers of a chip, the shapes that are sold, and descriptions of devices for a compiler.

Sources of the numbers:
  [docs]  cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}: capacity, bandwidth and the tables of slice shapes; the peak of
          arithmetic is in training/chips.py
  [book]  "How to scale your model" (jax-ml.github.io/scaling-book), tables of chapter 2 (TPU) and 12 (GPU): links
  [xla]   the limit at which libtpu 0.0.42 refuses a program ("exceeds available HBM")
  [nv]    data sheets of the A100 80GB SXM, H100 SXM and H200 SXM

A mesh axis over a whole torus dimension (16 chips of v5e and v6e, multiples of 4 of v4 and v5p) has wrap-around
links, so both directions of every link carry a collective; elsewhere one of them does [book].
"""

import dataclasses
import importlib.util
import math
import re
from typing import Any

from audiolm_jax.errors import InputError
from audiolm_jax.plan import gpus, libtpu
from audiolm_jax.training.chips import PEAKS

GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class Chip:
    """The numbers of one chip."""

    memory: float  # bytes that a program may use
    flops: float  # FLOP/s, dense bfloat16
    bandwidth: float  # bytes/s of the memory
    link: float  # bytes/s of one link in one direction
    shapes: tuple[str, ...] = ()  # of slices
    per_host: int = 4  # chips of one virtual machine
    cores: int = 1  # of a chip in a name such as v5p-512
    torus: int = 4  # a dimension that is a multiple of this closes to a ring
    network: float = 0.0  # GPUs: bytes/s of each to other machines


# Most common shapes; larger ones of v4 and v5p have dimensions that are multiples of 4 (see `legal`).
FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16", "16x16x16")

TPUS = {
    # memory [xla], bandwidth [docs], link [book], shapes [docs]
    "v4": Chip(30.75 * GIB, PEAKS["v4"], 1.2e12, 4.5e10, CUBES, cores=2),
    "v5e": Chip(15.75 * GIB, PEAKS["v5e"], 8.1e11, 5e10, FLAT, torus=16),
    "v5p": Chip(95.74 * GIB, PEAKS["v5p"], 2.765e12, 1e11, (*CUBES, "16x16x24"), cores=2),
    "v6e": Chip(31.25 * GIB, PEAKS["v6e"], 1.638e12, 1e11, FLAT, torus=16),
}
# Three quarters of the memory, jax's default for XLA_PYTHON_CLIENT_MEM_FRACTION. The link is NVLink in one direction,
# the network one card of 200 or 400 Gbit/s per GPU, as in DGX machines.
GPUS = {
    "a100": Chip(0.75 * 85.1e9, PEAKS["a100"], 2.04e12, 3e11, per_host=8, network=2.5e10),  # [nv]
    "h100": Chip(0.75 * 84.9e9, PEAKS["h100"], 3.35e12, 4.5e11, per_host=8, network=5e10),
    "h200": Chip(0.75 * 151.4e9, PEAKS["h200"], 4.8e12, 4.5e11, per_host=8, network=5e10),
}
CHIPS = TPUS | GPUS
LARGEST = {"v4": 4096, "v5p": 6144}  # chips [docs]


@dataclasses.dataclass(frozen=True)
class Slice:
    """Connected chips of one kind; `shape` is their torus, (count,) of GPUs."""

    kind: str
    shape: tuple[int, ...]

    @property
    def chip(self) -> Chip:
        return CHIPS[self.kind]

    @property
    def chips(self) -> int:
        return math.prod(self.shape)

    @property
    def is_gpu(self) -> bool:
        return self.kind in GPUS

    @property
    def hosts(self) -> int:
        """Processes of a run. Slices of v5e and v6e up to 8 chips are one machine [docs]."""
        per_host = 8 if self.kind in ("v5e", "v6e") and self.chips <= 8 else self.chip.per_host
        return -(-self.chips // per_host)

    @property
    def name(self) -> str:
        return f"{self.kind}:{'x'.join(map(str, self.shape))}"

    @property
    def sold_as(self) -> str:
        """The accelerator type of gcloud: v5e and v6e count chips, v4 and v5p cores."""
        if self.is_gpu:
            return self.name
        name = "v5litepod" if self.kind == "v5e" else self.kind
        return f"{name}-{self.chips * self.chip.cores}"

    def link_bandwidth(self, group: int) -> float:
        """Bytes/s that a chip sends and receives in a collective of `group` chips: over the fewest dimensions of the
        torus that hold the group, two directions of a link if the dimension is a ring."""
        if self.is_gpu:
            return self.chip.link if group <= self.chip.per_host else self.chip.network
        total, held = 0.0, 1
        for size in sorted(self.shape, reverse=True):
            if held >= group and total:
                break
            if size > 1:
                ring = size % self.chip.torus == 0 and group >= size
                total, held = total + self.chip.link * (2 if ring else 1), held * size
        return total or self.chip.link


def parse(text: str) -> Slice:
    """A slice by shape ("v5e:16x16"), by accelerator type ("v5e-256", "v5p-512": 256 chips) or GPUs ("h100:8").

    Raises InputError, naming those there are, for an unknown chip and a shape or size that is not sold.
    """
    match = re.fullmatch(r"(v5litepod|[a-z]\w*?)([:-])(\d+(?:x\d+)*)", text.strip().lower())
    kind = {"v5litepod": "v5e"}.get(match[1], match[1]) if match else text
    if not match or kind not in CHIPS:
        raise InputError(
            f"--topology={text}: not known; write a TPU slice such as v5e:16x16, v5e-256, v5p-512 or v6e-8 "
            f"(chips: {', '.join(TPUS)}), or GPUs by count such as h100:8 ({', '.join(GPUS)})"
        )
    numbers = tuple(int(n) for n in match[3].split("x"))
    if kind in GPUS:
        if len(numbers) != 1 or not numbers[0]:
            raise InputError(f"--topology={text}: GPUs are given by count, such as {kind}:8")
        if numbers[0] > GPUS[kind].per_host and numbers[0] % GPUS[kind].per_host:
            raise InputError(f"--topology={text}: more than {GPUS[kind].per_host} GPUs come as whole machines")
        return Slice(kind, numbers)
    if len(numbers) == 1 and match[2] == "-":
        return _by_size(text, kind, numbers[0])
    if not legal(kind, numbers):
        raise InputError(f"--topology={text}: {kind} has no such slice; its shapes are {', '.join(TPUS[kind].shapes)}")
    return Slice(kind, numbers)


def legal(kind: str, shape: tuple[int, ...]) -> bool:
    """Whether a slice is sold: one of the table or, of v4 and v5p, multiples of 4 in rising order."""
    if "x".join(map(str, shape)) in TPUS[kind].shapes:
        return True
    cubes = len(shape) == 3 and all(n > 0 and n % 4 == 0 for n in shape) and list(shape) == sorted(shape)
    return kind in LARGEST and cubes and math.prod(shape) <= LARGEST[kind]


def _by_size(text: str, kind: str, size: int) -> Slice:
    cores = TPUS[kind].cores
    shapes = [tuple(map(int, shape.split("x"))) for shape in TPUS[kind].shapes]
    by_size = {math.prod(shape) * cores: shape for shape in shapes}
    if size not in by_size:
        counted = "cores, two of a chip" if cores == 2 else "chips"
        raise InputError(
            f"--topology={text}: {kind} is sold in {', '.join(map(str, by_size))} {counted}; "
            f"or give a shape, such as {kind}:{TPUS[kind].shapes[-1]}"
        )
    return Slice(kind, by_size[size])


def devices(of: Slice) -> list[Any]:
    """Descriptions of the chips of a slice by libtpu or jax's CUDA plugin, without such a chip.

    Raises InputError if the library is not installed or refuses the shape.
    """
    if of.is_gpu:
        return gpus.devices(of.kind, of.hosts, min(of.chips, of.chip.per_host))
    if importlib.util.find_spec("libtpu") is None:
        raise InputError(
            f"--topology={of.name}: compiling for a TPU needs libtpu, which is not installed; "
            "pip install 'audiolm-jax[tpu]' (it needs no TPU)"
        )
    from jax.experimental import topologies

    options = {}
    if TPUS[of.kind].cores == 2:  # both cores of a chip are one device, as on a TPU
        options["chip_config_name"] = "megacore"
    if of.hosts == 1:  # libtpu takes a machine to have 2x2 chips
        options["chips_per_host_bounds"] = (*of.shape, 1)[:3]
    with libtpu.quiet(of.sold_as):
        try:
            return list(topologies.get_topology_desc(of.name, platform="tpu", **options).devices)
        except Exception as error:
            raise InputError(f"--topology={of.name}: libtpu refuses it: {error}") from error
