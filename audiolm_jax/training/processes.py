"""Several processes as one run: how they connect, and how they end when one of them dies.

One setting says how (`--processes` of the command line, `start` in Python):

    none                  this process alone
    tpu                   the hosts of a Cloud TPU slice, from its metadata
    slurm                 the tasks of a SLURM step, each with the GPU of its local rank
    HOST:PORT,COUNT,ID    process ID (from 0) of COUNT; process 0 listens at HOST:PORT

Exit codes of a process, for its launcher:

    0          done
    2          bad input: the same command would fail again; or there is no process 0 at HOST:PORT
    130, 143   training: SIGINT or SIGTERM reached some process: all saved after the same step (loop.py) and ended
    75         another process died, or did not come. Checkpoints are intact: start all of them again
    else       an error of this process, with its traceback; the others end with 75

Before all have come, the death of one is like its absence: the others wait for it, at most 5 minutes. Later JAX's
coordination service, in process 0, notices a dead process after `HEARTBEAT` seconds, and on a CPU the next
collective fails at once; its client then aborts every process. Here one line and exit code 75 replace that: from
`start` on the log of the runtime goes to a file, which is printed if it is about anything else. TF_CPP_MIN_LOG_LEVEL=0
in the environment leaves the log as it is.
"""

import contextlib
import ctypes
import json
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
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from audiolm_jax.errors import InputError
from audiolm_jax.model.sharding import Rules, single_device_mesh

LOST = 75  # EX_TEMPFAIL of sysexits.h
HEARTBEAT = 30  # seconds without a sign of life after which a process is dead
GRACE = 2.0  # seconds that process 0, whose end aborts the others, waits after an error that all may have
FORMS = "none, tpu, slurm or HOST:PORT,COUNT,ID"
# In the runtime's log if other processes are the reason: its coordination client, Gloo (CPU), NCCL (GPU).
SIGNS = re.compile(r"distributed service detected fatal errors|gloo|nccl|coordination ?service|unhealthy", re.I)


def start(setting: str, timeout: int = 300) -> None:
    """Makes this process one of several; to be called before anything asks jax for its devices. timeout: seconds.

    Raises InputError for a setting that is none of FORMS or does not fit this machine, for JAX 0.7, and for a
    coordinator that cannot be reached. If other processes are missing after `timeout` this one ends: one sentence, exit
    code 75, since they may have died.
    """
    if setting == "none":
        return
    arguments, where = _arguments(setting, timeout)
    # Its SIGTERM handler would take the signal from `signals`.
    if not hasattr(jax.config, "jax_enable_preemption_service"):
        raise InputError(f"--processes={setting}: JAX {jax.__version__} is too old for several processes; give 'none'")
    jax.config.update("jax_enable_preemption_service", False)
    missing = f"--processes={setting}: not all processes came to {where} within {timeout} s"
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL") != "0":  # jax itself sets it to 1
        _catch_aborts(missing)
    timeouts = {"initialization_timeout": timeout, "heartbeat_timeout_seconds": HEARTBEAT}
    try:
        jax.distributed.initialize(**arguments, **timeouts)
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        raise InputError(f"--processes={setting}: {str(error).splitlines()[0]}") from error
    _on_abort.update(sentence=_sentence("another process of the run died or cannot be reached"))


def _arguments(setting: str, timeout: int) -> tuple[dict, str]:
    """The arguments of jax.distributed.initialize, and the coordinator's place in words."""
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
    arguments = {"coordinator_address": address, "num_processes": count, "process_id": number}
    return arguments | {"cluster_detection_method": "deactivate"}, address


def _wait_for(setting: str, host: str, port: int, timeout: int) -> None:
    """Waits for the coordinator. Raises InputError after `timeout` seconds, where jax would abort."""
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
    with contextlib.suppress(OSError), socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("", port))
        return True
    return False


_on_abort: dict = {}


def _catch_aborts(sentence: str) -> None:
    """Keeps the log of the runtime in a file; an abort of the runtime because of other processes has exit code LOST,
    and prints `sentence` until `_on_abort` is updated.

    Without it (jaxlib 0.10.2) a process that does not come, or is killed in training, leaves the others with 14 to 25
    lines of log and C++ stack and exit code 134 (SIGABRT): a launcher cannot tell such a run, which it may start again,
    from a crash. jax has no public callback for it. abort() runs a handler of SIGABRT in the thread that called it, one
    of the runtime's; a handler of `signal.signal` would wait for the main thread, which waits for the dead process.
    """
    shown, log = os.dup(2), tempfile.TemporaryFile()  # noqa: SIM115 (kept open until the process ends)
    sys.stderr.flush()
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, encoding="utf-8", errors="backslashreplace")
    os.dup2(log.fileno(), 2)

    def aborted(_: int) -> None:
        text = os.pread(log.fileno(), 1 << 20, 0)
        if SIGNS.search(text.decode(errors="replace")):
            os.write(shown, f"\naudiolm: {_on_abort['sentence']}\n".encode())
            os._exit(LOST)
        os.write(shown, text)
        os._exit(128 + signal.SIGABRT)

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(aborted)
    set_handler = ctypes.CDLL(None).signal
    set_handler.restype, set_handler.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
    set_handler(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))
    _on_abort.update(sentence=sentence, alive=(handler, log))


def _sentence(what: str) -> str:
    return (
        f"process {jax.process_index()} of {jax.process_count()} stops: {what}; "
        "checkpoints are intact, and the same command in all processes resumes"
    )


def primary() -> bool:
    """Whether this is process 0, the one that writes and prints."""
    return jax.process_index() == 0


@contextlib.contextmanager
def together(*shared_errors: str) -> Iterator[None]:
    """For a block that all processes run in step: an error in it, or Ctrl-C, ends this process at once.

    Unwinding the stack would wait for the others (barriers of orbax and of jax's shutdown), which wait for this process
    in the next collective. shared_errors: names of errors that all processes raise at the same place; they propagate.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if jax.process_count() == 1 or type(error).__name__ in shared_errors:
            raise
        leave(error)


def meet(name: str) -> None:
    """A barrier with a timeout of 30 minutes (an all-gather). Other collectives on a CPU fail after 30 seconds, which a
    process that compiles may take (jax issue 40831)."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def leave(error: BaseException) -> None:
    """Ends this process without waiting for the others: one line, and LOST if they caused the error, 2 for an
    InputError, 130 for Ctrl-C; else the traceback and 1."""
    origin: BaseException | None = error  # a process that dies while a checkpoint is read looks like a damaged one
    while origin and not (isinstance(origin, jax.errors.JaxRuntimeError) and SIGNS.search(str(origin))):
        origin = origin.__cause__ or origin.__context__
    if origin:
        reason = " ".join(str(origin).split())[:200]
        code, text = LOST, f"audiolm: {_sentence(f'another process of the run died ({reason})')}\n"
    elif isinstance(error, InputError):
        code, text = 2, f"audiolm: {' '.join(str(error).split())}\n"
    elif isinstance(error, KeyboardInterrupt):
        code, text = 128 + signal.SIGINT, f"audiolm: {_sentence('it was interrupted')}\n"
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
    """Columns of a step's [accumulate, rows / accumulate] rows that the devices of this process need, in order.

    Processes along a mesh axis that only shards weights need the same columns. Raises what `check_rows` raises.
    """
    check_rows(rows, accumulate, rules.parts("batch", mesh), lanes)
    sharding = NamedSharding(mesh, rules.spec("batch"))
    count = rows // accumulate
    here = sharding.addressable_devices_indices_map((count,))
    return np.unique(np.concatenate([np.arange(count)[index] for index in here.values()]))


def shards_here(mesh: Mesh, rules: Rules) -> int:
    """The number of parts into which the rows of this process are sharded over its devices."""
    here = NamedSharding(mesh, rules.spec("batch")).addressable_devices_indices_map((mesh.size,))
    return len({str(index) for index in here.values()})


def flag(mesh: Mesh, number: int) -> jax.Array:
    """A number of every process as one int32 array over all devices, for a maximum (an all-reduce) in a jitted
    function."""
    local = np.full(len(mesh.local_devices), number, np.int32)
    return jax.make_array_from_process_local_data(NamedSharding(mesh, P(mesh.axis_names)), local, (mesh.size,))


def everyone(value: Any) -> list[Any]:
    """The values of all processes (what JSON holds), in process order: an all-gather, which every process must call and
    which waits for half an hour (`meet`)."""
    if jax.process_count() == 1:
        return [value]
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.array([len(data)]))
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: len(data)] = data
    texts = multihost_utils.process_allgather(padded)
    return [json.loads(bytes(row[:n])) for row, n in zip(texts, lengths[:, 0], strict=True)]


def by_first(work: Callable[[], Any]) -> Any:
    """What `work` returns (JSON values) in process 0, in all processes: the others wait."""
    return everyone(work() if primary() else None)[0]


def share(count: int, size: int) -> list[range]:
    """Those of the batches of `size` out of `count` items that fall to this process; the last may be smaller."""
    batches = [range(count)[start : start + size] for start in range(0, count, size)]
    return batches[jax.process_index() :: jax.process_count()]


def gathered(params: Any) -> Any:
    """All of a tree of global arrays on one device of every process (an all-gather); one process: the tree itself."""
    if jax.process_count() == 1:
        return params
    from jax.experimental import multihost_utils

    whole = multihost_utils.process_allgather(params, tiled=True)
    return jax.device_put(whole, NamedSharding(single_device_mesh(), P()))


@contextlib.contextmanager
def signals() -> Iterator[list[int]]:
    """A list that receives the first SIGINT or SIGTERM; for the next one the earlier handlers are back."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def reset(*_: Any) -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def receive(number: int, _: Any) -> None:
        received.append(number)
        reset()

    for number in before:
        signal.signal(number, receive)
    try:
        yield received
    finally:
        reset()
