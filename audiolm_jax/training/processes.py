"""Several processes as one run: how they find each other, and how they end when one of them dies.

One setting says how, and nothing is guessed (`--processes` of the command line, `start` in Python):

    none                  this process alone
    tpu                   the hosts of a Cloud TPU slice, from its metadata
    slurm                 the tasks of a SLURM step, each with the one GPU of its local number
    HOST:PORT,COUNT,ID    process ID (from 0) of COUNT; process 0 listens at HOST:PORT

Exit codes of a process, for whatever starts them:

    0          done
    2          bad input: the same command would fail again
    130, 143   SIGINT or SIGTERM reached some process: all saved after the same step (loop.py) and ended
    75         another process died or cannot be reached. What is saved is intact: start all of them again
    else       an error of this process, with its traceback; the others end with 75

JAX's coordination service, in process 0, notices a process that died after `HEARTBEAT` seconds, and on a CPU the next
collective fails at once. Its client then aborts every process. Here one line and exit code 75 replace that: the log of
the runtime goes to a file from `start` on, and is shown if it is about anything else. With TF_CPP_MIN_LOG_LEVEL=0 in
the environment it is shown unchanged.
"""

import contextlib
import ctypes
import math
import os
import re
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from audiolm_jax.errors import InputError
from audiolm_jax.model.sharding import Rules

LOST = 75  # EX_TEMPFAIL of sysexits.h
HEARTBEAT = 30  # seconds without a sign of life after which a process is dead
GRACE = 2.0  # seconds for which process 0, without which no other lives, stays after an error that all may have met
FORMS = "none, tpu, slurm or HOST:PORT,COUNT,ID"
# What the runtime logs where other processes are the reason: its coordination client, Gloo (CPU), NCCL (GPU).
SIGNS = re.compile(r"distributed service detected fatal errors|gloo|nccl|coordination ?service|unhealthy", re.I)


def start(setting: str, timeout: int = 300) -> None:
    """Makes this process one of several; must come before anything asks jax for its devices. timeout: seconds.

    Raises InputError for a setting that is none of FORMS or does not fit where this runs, for a coordinator that cannot
    be reached. If the others do not come in time the process ends: one sentence, exit code 2.
    """
    if setting == "none":
        return
    arguments, where = _arguments(setting, timeout)
    # Its SIGTERM handler would take the signal from `signals`, which asks everybody by itself.
    jax.config.update("jax_enable_preemption_service", False)
    waiting = f"--processes={setting}: not all processes came to {where} within {timeout} s"
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL") != "0":  # jax itself sets it to 1
        _instead_of_the_log(waiting)
    try:
        jax.distributed.initialize(
            **arguments,
            initialization_timeout=timeout,
            heartbeat_timeout_seconds=HEARTBEAT,
        )
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        raise InputError(f"--processes={setting}: {str(error).splitlines()[0]}") from error
    _on_abort.update(code=LOST, sentence=_sentence("another process of the run died or cannot be reached"))


def _arguments(setting: str, timeout: int) -> tuple[dict, str]:
    """Those of jax.distributed.initialize, and where the processes meet."""
    if setting == "tpu":
        return {}, "the coordinator of the slice"
    if setting == "slurm":
        missing = [name for name in ("SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_PROCID") if name not in os.environ]
        if missing:
            raise InputError(f"--processes=slurm: {missing[0]} is not set here; start the command with srun")
        return {"cluster_detection_method": "slurm"}, "the first node of the step"
    match = re.fullmatch(r"(?P<host>.+):(?P<port>\d+),(?P<count>\d+),(?P<id>\d+)", setting)
    if not match:
        raise InputError(f"--processes={setting}: must be {FORMS}")
    host, port, count, number = match["host"], int(match["port"]), int(match["count"]), int(match["id"])
    if not number < count or not 0 < port < 2**16:
        raise InputError(f"--processes={setting}: ID must be 0..COUNT-1 and PORT 1..65535, in HOST:PORT,COUNT,ID")
    if number:
        _wait_for(setting, host, port, timeout)
    elif not _free(port):
        raise InputError(f"--processes={setting}: port {port} of this machine is in use; name another one to all")
    address = f"{host}:{port}"
    return {
        "coordinator_address": address,
        "num_processes": count,
        "process_id": number,
        "cluster_detection_method": "deactivate",
    }, address


def _wait_for(setting: str, host: str, port: int, timeout: int) -> None:
    """Until the coordinator answers: jax would abort instead of raising an error."""
    end = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection((host.strip("[]"), port), timeout=max(1.0, end - time.monotonic())).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                raise InputError(
                    f"--processes={setting}: {host}:{port} cannot be reached within {timeout} s "
                    f"({error.strerror or error}); process 0 must run there with the same HOST:PORT and COUNT"
                ) from None
        time.sleep(0.2)


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


_on_abort: dict = {}


def _instead_of_the_log(waiting: str) -> None:
    """From here on the log of the runtime is kept in a file, and an abort of the runtime because of the other processes
    prints one line: `waiting`, with exit code 2, until `_on_abort` says otherwise.

    abort() runs a handler of SIGABRT in the thread that called it, which is one of the runtime's own and holds no lock
    of Python's. A handler of `signal.signal` would wait for the main thread, and the main thread for the dead process.

    Seen without it (jaxlib 0.10.2), for processes that do not come, and for one that is killed while the others train:
    14 to 25 lines of log and C++ stack, and exit code 134 (SIGABRT) instead of 2 and 75, so that a launcher cannot tell
    a run that it may start again from a crash. jax has no public callback for it.
    """
    shown, log = os.dup(2), tempfile.TemporaryFile()  # noqa: SIM115 (kept open until the process ends)
    sys.stderr.flush()
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, encoding="utf-8", errors="backslashreplace")
    os.dup2(log.fileno(), 2)

    def aborted(_: int) -> None:
        text = os.pread(log.fileno(), 1 << 20, 0)
        if SIGNS.search(text.decode(errors="replace")):
            os.write(shown, f"\naudiolm: {_on_abort['sentence']}\n".encode())
            os._exit(_on_abort["code"])
        os.write(shown, text)
        os._exit(128 + signal.SIGABRT)

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(aborted)
    set_handler = ctypes.CDLL(None).signal
    set_handler.restype, set_handler.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
    set_handler(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))
    _on_abort.update(code=2, sentence=waiting, alive=(handler, log))


def _sentence(what: str) -> str:
    return (
        f"process {jax.process_index()} of {jax.process_count()} stops: {what}; "
        "what was saved is intact, and the same command in all processes goes on from there"
    )


def primary() -> bool:
    """Whether this process writes and prints what only one may: process 0."""
    return jax.process_index() == 0


@contextlib.contextmanager
def together(*met_by_all: str) -> Iterator[None]:
    """For a block that all processes run in step: an error in it ends this process at once.

    Unwinding the stack would wait for the others (barriers of orbax and of jax's shutdown), which wait for this process
    in the next collective. met_by_all: names of errors that every process raises at the same place, which are raised.
    """
    try:
        yield
    except Exception as error:
        if jax.process_count() == 1 or type(error).__name__ in met_by_all:
            raise
        leave(error)


def meet(name: str) -> None:
    """A barrier with a timeout of 30 minutes: an all-gather. Other collectives on a CPU fail after
    30 seconds, which a process that still compiles may take (jax issue 40831)."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def leave(error: Exception) -> None:
    """Ends this process without waiting for the others: one line and LOST if they caused the error, the sentence of an
    InputError and 2, or else the traceback and 1."""
    if isinstance(error, jax.errors.JaxRuntimeError) and SIGNS.search(str(error)):
        reason = " ".join(str(error).split())[:200]
        code, text = LOST, f"audiolm: {_sentence(f'another process of the run died ({reason})')}\n"
    elif isinstance(error, InputError):
        code, text = 2, f"audiolm: {' '.join(str(error).split())}\n"
    else:
        code, text = 1, "".join(traceback.format_exception(error))
    sys.stdout.flush()
    sys.stderr.write("\n" + text)
    sys.stderr.flush()
    if primary() and code != LOST:
        time.sleep(GRACE)
    os._exit(code)


def check_rows(rows: int, accumulate: int, shards: int, lanes: int = 1) -> None:
    """Raises InputError for a batch that cannot be split into `accumulate` parts, each over `shards` devices."""
    unit = accumulate * math.lcm(shards, lanes)
    if rows % unit:
        raise InputError(
            f"data.batch_size={rows} rows cannot be split into training.accumulate={accumulate} parts, each over "
            f"{shards} devices and out of data.lanes={lanes}; choose a multiple of {unit}"
        )


def columns(mesh: Mesh, rules: Rules, rows: int, accumulate: int, lanes: int = 1) -> np.ndarray:
    """Which columns of a step's [accumulate, rows / accumulate] rows the devices of this process need, in order.

    Processes along a mesh axis that only shards weights need the same columns.
    Raises InputError if the rows cannot be dealt out evenly.
    """
    check_rows(rows, accumulate, rules.parts("batch", mesh), lanes)
    sharding = NamedSharding(mesh, rules.spec("batch"))
    count = rows // accumulate
    here = sharding.addressable_devices_indices_map((count,))
    return np.unique(np.concatenate([np.arange(count)[index] for index in here.values()]))


def shards_here(mesh: Mesh, rules: Rules) -> int:
    """Into how many parts the rows of this process are split over its devices."""
    here = NamedSharding(mesh, rules.spec("batch")).addressable_devices_indices_map((mesh.size,))
    return len({str(index) for index in here.values()})


def flag(mesh: Mesh, number: int) -> jax.Array:
    """A number of every process -> one int32 per device of the mesh, whose maximum in a jitted function is the largest
    number of any process."""
    local = np.full(len(mesh.local_devices), number, np.int32)
    return jax.make_array_from_process_local_data(NamedSharding(mesh, P(mesh.axis_names)), local, (mesh.size,))


def everyone(text: str) -> list[str]:
    """The texts of all processes, in process order (an all-gather: every process must call it)."""
    if jax.process_count() == 1:
        return [text]
    from jax.experimental import multihost_utils

    data = np.frombuffer(text.encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.array([len(data)]))
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: len(data)] = data
    texts = multihost_utils.process_allgather(padded)
    return [bytes(row[:n]).decode() for row, n in zip(texts, lengths[:, 0], strict=True)]


@contextlib.contextmanager
def signals() -> Iterator[list[int]]:
    """A list that receives the first SIGINT or SIGTERM; the next one acts as it did before the block."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, _: Any) -> None:
        received.append(number)
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in before:
        signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
