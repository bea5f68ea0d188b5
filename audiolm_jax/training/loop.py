"""The training loop: checkpoints, metrics, signals, several processes.

A workdir belongs to one run: started again with the same configuration it resumes from the latest checkpoint and ends
as if it had never stopped, bit for bit, data position and keys included. On another number of processes or devices the
data order is the same and sums are rounded differently. SIGINT and SIGTERM save after the current step and end the
process with exit codes 130 and 143 (`Interrupted`). A step whose loss, gradient or updated parameters are not finite
raises `Diverged` before anything of it is saved: every checkpoint is of a finite step.

Several processes (`processes.py`) run the same steps. A signal that reaches one of them must stop all of them after
the same step: every step takes a number from each process and returns the largest, an all-reduce of one integer in
an executable that has all-reduces anyway. It is read with the other metrics, while the next step runs, which is then
the last one. (JAX's own preemption notice asks the coordinator in every step and takes SIGTERM for itself.)
"""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from flax import nnx

from audiolm_jax import config as configs
from audiolm_jax import files, locks
from audiolm_jax.errors import InputError, listed
from audiolm_jax.model import checkpoints
from audiolm_jax.model.config import ShardingConfig
from audiolm_jax.model.sharding import check_sizes, make_mesh, on_mesh, shard_batch
from audiolm_jax.model.spec import Spec, upgrade
from audiolm_jax.model.transformer import Transformer
from audiolm_jax.training import metrics, processes
from audiolm_jax.training.config import OptimizerConfig, TrainingConfig
from audiolm_jax.training.step import SCRATCH, Adapter, TrainState, init_state, jitted, program

# Keys that a resumed run may change: they do not change what is computed (sharding: up to rounding).
MAY_CHANGE = (
    "sharding.",
    "speakers",  # follow from the tokens; runs of before December 2026 lack them
    *("training.checkpoint_every", "training.keep", "training.probe_every", "training.evaluate_every"),
    *("training.profile_steps", "training.peak_tflops"),
)
MAY_GROW = "training.steps"  # a schedule that ends with the run then ends later

# For the initialisation, which runs once: XLA takes far longer to optimise random numbers than to draw them.
_RUN_ONCE = {"xla_backend_optimization_level": 0}


class Diverged(RuntimeError):
    """The loss, the gradient or the updated parameters of a step were NaN or infinite."""


class Interrupted(SystemExit):
    """SIGINT or SIGTERM, after the state was saved; the exit code is 128 + the signal's number."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A training run, but for its model and its data."""

    training: TrainingConfig
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    sharding: ShardingConfig = dataclasses.field(default_factory=ShardingConfig)
    seed: int = 0
    frame_rate: float = 1.0  # frames per second of audio, for the metrics


@dataclasses.dataclass(frozen=True)
class Hooks:
    """What is called while a model trains.

    probe: every `training.probe_every` steps in process 0, (step, model) -> {name: number or (waveform, sample rate)}
    for TensorBoard. evaluate: every `training.evaluate_every` steps in all processes, model -> {name: number} for the
    metrics. keep: in process 0 with the workdir, once it is this run's: writes what stands beside the checkpoints.
    """

    probe: Callable[[int, Transformer], dict[str, Any]] | None = None
    evaluate: Callable[[Transformer], dict[str, float]] | None = None
    keep: Callable[[Path], None] = lambda workdir: None


def train(
    folder: str | Path,
    batches: Iterator[dict[str, np.ndarray]],
    spec: Spec,
    run: Run,
    *,
    adapter: Adapter = SCRATCH,
    hooks: Hooks = Hooks(),
    progress: bool = True,
    devices: list[jax.Device] | None = None,
) -> TrainState:
    """Trains to `training.steps`, resuming from the latest checkpoint in the workdir `folder`; returns the final state.

    Args:
      batches: infinite iterator of this process's rows (`data/batches.py`) with `get_state` and `set_state`:
        `data.Batches`, whose position other processes can resume at, or a grain iterator.
      spec: saved with the weights, and compared on resume.
      adapter: which weights training starts from, and which of them it changes.

    Raises:
      InputError: a workdir of another configuration (naming the keys) or one that cannot be written; a batch that does
        not fit the mesh.
      Diverged, Interrupted.
    """
    folder, training, rules = files.place(folder), run.training, run.sharding.rules
    probe, evaluate = hooks.probe, hooks.evaluate
    mesh, alone = make_mesh(run.sharding, devices), jax.process_count() == 1
    check_sizes(mesh, rules, spec.model.sharded_sizes(spec.vocab.size))
    sections = {name: dataclasses.asdict(getattr(run, name)) for name in ("sharding", "optimizer", "training")}
    claim(folder, {**spec.to_json(), **sections, "seed": run.seed})
    with (
        _alone_in(folder),
        jax.set_mesh(mesh),
        checkpoints.manager(folder, training.keep) as manager,
        processes.signals() as received,
        processes.together("Diverged"),
    ):
        step_parts = program(spec.model, spec.vocab, rules, run.optimizer, training, adapter)
        adapter.prepare(folder)
        if jax.process_index() == 0:
            hooks.keep(folder)
        start, key = manager.latest_step() or 0, jax.random.key(run.seed)
        weights, frozen = adapter.load(spec.model, rules, resumed=start > 0)
        init = jax.jit(lambda key, weights: init_state(step_parts, key, weights), compiler_options=_RUN_ONCE)
        # Trained parameters -> all parameters of the model; None if these are the same.
        merge = functools.partial(jax.jit(adapter.merge), frozen=frozen) if adapter.partial else None
        if start:
            state, position = _restore(manager, start, on_mesh(jax.eval_shape(init, key, weights), mesh), merge)
            with files.reading(f"checkpoint {start} of {folder}", "a position in the data"):
                batches.set_state(_position(position["iterators"], folder))
                position["seconds"] = float(position["seconds"])
        else:
            state, position = init(key, weights), {"seconds": 0.0}
        del weights  # the step donates the state's buffers, which may be these
        if start >= training.steps:
            return state
        step_fn = jitted(step_parts, alone)
        stop = received if alone else []  # the signal that ends the run, once all processes have it
        from audiolm_jax.training import chips  # late: a run that is only described needs no peak

        peak = chips.peak_flops(training.peak_tflops)
        recorder = metrics.Recorder(folder, spec.vocab, start, position["seconds"], training.steps, progress)
        with contextlib.closing(recorder):

            def finish(step: int, values: dict, shape: tuple[int, ...], documents: Sequence[int]) -> None:
                """Waits for the metrics of a step and logs them every `log_every` steps."""
                values = jax.device_get(values)
                if values.get("signal"):
                    stop.append(int(values["signal"]))
                numbers = {name: float(values[name]) for name in ("loss", "grad_norm", "parameter_norm")}
                if not np.isfinite(list(numbers.values())).all():
                    last = manager.latest_step()
                    raise Diverged(
                        f"step {step}: {', '.join(f'{name} {number}' for name, number in numbers.items())}"
                        f"{_named(batches, documents)}; "
                        + (f"checkpoint {last} is intact" if last else "there is no checkpoint yet")
                    )
                recorder.bar.update(1)
                if step % training.log_every == 0 or step == training.steps:
                    interval = (step - 1) % training.log_every + 1
                    rows, positions = shape[0] * shape[1] * interval, shape[2]
                    sizes = spec.model, spec.vocab, rows, positions, values["sums"]["count_X"]
                    flops = metrics.train_flops(*sizes, training.depth_fraction)
                    recorder.log(step, values, flops, peak, run.frame_rate)

            pending = None
            shards = processes.shards_here(mesh, rules)
            profile = _Profile(folder, start, training.profile_steps)
            for step in range(start + 1, training.steps + 1):
                profile.before(step)
                batch = _split(next(batches), training.accumulate, shards)
                documents = getattr(batches, "documents", ())
                data_position = batches.get_state()
                batch = shard_batch(batch, mesh, rules, leading=1)
                flags = () if alone else (processes.flag(mesh, received[0] if received else 0),)
                if step == start + 1 and not alone:
                    step_fn = step_fn.lower(state, batch, frozen, *flags).compile()
                    processes.meet("compiled")
                state, values = step_fn(state, batch, frozen, *flags)
                if pending is not None:
                    finish(*pending)  # of the previous step, while this one runs
                pending = (step, values, batch["tokens_BLS"].shape, documents)
                profile.after(step, values)
                probing = probe is not None and training.probe_every and step % training.probe_every == 0
                evaluating = evaluate is not None and training.evaluate_every and step % training.evaluate_every == 0
                if probing or evaluating:
                    finish(*pending)  # which may say that a signal came: then this step is saved, too
                    pending = None
                saving = step % training.checkpoint_every == 0 or step == training.steps or stop
                if not (saving or probing or evaluating):
                    continue
                if pending is not None:
                    finish(*pending)
                    pending = None
                params, rest = _for_inference(state, merge)
                if evaluating:  # before saving, so that a resumed run has its line
                    with recorder.paused():
                        values = evaluate(nnx.merge(step_parts.graph, params))
                    recorder.evaluated(step, values)
                if saving:
                    everywhere = processes.everyone(checkpoints.pack_position(data_position))
                    position = {"iterators": everywhere, "seconds": recorder.seconds}
                    recorder.save()
                    checkpoints.save(manager, step, params, rest, position, spec)
                if probing:
                    with recorder.paused():
                        gathered = processes.gathered(params)
                        if processes.primary():
                            recorder.probe(step, probe(step, nnx.merge(step_parts.graph, gathered)))
                        processes.meet("probed")
                        del gathered
                del params, rest  # the next step donates the state's buffers
                if stop and step < training.steps:
                    break
            with files.writing(folder):
                manager.wait_until_finished()
    if stop and step < training.steps:
        raise Interrupted(128 + stop[0])
    return state


def claim(workdir: Path, config: dict[str, Any]) -> None:
    """Writes the config.json of a run, or checks that there is an equal one; keys that it lacks count as defaults.

    A run may become longer (MAY_GROW). Raises InputError naming every other key that differs (but those of MAY_CHANGE),
    or a folder that cannot be written.
    """
    config = json.loads(json.dumps(config))
    path = workdir / "config.json"
    if path.exists():
        ours, defaults = configs.flat(config), configs.flat(json.loads(json.dumps(configs.defaults().to_dict())))
        theirs = {key: value for key, value in defaults.items() if key in ours}
        theirs |= configs.flat(upgrade(files.read_json(path), path))
        before = theirs.get(MAY_GROW)
        longer = type(before) is int and ours.get(MAY_GROW, 0) > before
        different = [
            f"{key} is {theirs.get(key, 'absent')!r} there and {ours.get(key, 'absent')!r} here"
            for key in sorted(ours.keys() | theirs.keys())
            if ours.get(key, "absent") != theirs.get(key, "absent") and not key.startswith(MAY_CHANGE)
            if not (longer and key == MAY_GROW)
        ]
        if different:
            raise InputError(f"{workdir} is the run of another config: {listed(different, 12)}; name another folder")
        if not longer:
            return
    if jax.process_index() == 0:
        with files.writing(workdir):
            files.write_json(path, config)


@contextlib.contextmanager
def _alone_in(workdir: Path) -> Iterator[None]:
    """Holds the lock of a local workdir: two runs in one would overwrite each other's checkpoints.

    Raises InputError naming the process that holds it.
    """
    if jax.process_index() or files.remote(workdir):
        yield
        return
    path = workdir / "train.lock"
    with locks.claim(path) as held:
        if not held:
            raise InputError(f"{workdir} is in use: {locks.holder(path)} trains it; wait, or name another folder")
        yield


def _named(batches: Any, documents: Sequence[int], most: int = 8) -> str:
    """The documents of a batch, for a message; "" if the iterator does not know them."""
    if not len(documents):
        return ""
    names, more = ", ".join(batches.keys(documents[:most])), len(documents) - most
    return f"; the documents of its batch: {names}" + (f" and {more} more" if more > 0 else "")


class _Profile:
    """Traces `count` steps with jax.profiler, from the third after the start on: the first ones compile."""

    def __init__(self, workdir: Path, start: int, count: int):
        self._folder, self._first, self._last = workdir / "profile", start + 3, start + 2 + count

    def before(self, step: int) -> None:
        if step == self._first <= self._last:
            jax.profiler.start_trace(str(self._folder))

    def after(self, step: int, values: Any) -> None:
        if step == self._last >= self._first:
            jax.block_until_ready(values)
            jax.profiler.stop_trace()
            logging.warning("the trace of steps %d to %d: xprof --logdir %s", self._first, step, self._folder)


def _for_inference(state: TrainState, merge: Callable[[dict], dict] | None = None) -> tuple[dict, dict]:
    """The state as two plain trees: (parameters for inference, everything else).

    merge: of an adapter that trains some parameters; with it the trained ones are in the second tree.
    """
    rest = {"step": state.step, "opt_state": state.opt_state, "key": state.key, "sums": state.sums}
    if merge is not None:
        rest |= {"params": state.params, "ema": state.ema} if state.ema else {"params": state.params}
        return merge(state.ema or state.params), rest
    return (state.ema, rest | {"params": state.params}) if state.ema else (state.params, rest)


def _restore(manager: Any, step: int, state: TrainState, merge: Callable | None) -> tuple[TrainState, dict]:
    """Checkpoint `step` sharded like the abstract `state`, and the positions in it."""
    # With an adapter the parameters for inference follow from the other tree, and are not read.
    params, rest = _for_inference(state, merge and (lambda _: None))
    params, rest, position = checkpoints.restore(manager, step, params, rest)
    if merge is None:
        rest["ema" if state.ema else "params"] = params
    return TrainState(**{"ema": {}, **rest}), position


def _split(batch: dict[str, np.ndarray], parts: int, shards: int) -> dict[str, np.ndarray]:
    """[rows, ...] -> [parts, rows / parts, ...]; shards: those of the rows on this process's devices."""
    rows = len(batch["tokens_BLS"])
    processes.check_rows(rows, parts, shards)
    arrays = {name: x for name, x in batch.items() if np.ndim(x)}  # without the totals that `data.Batches` adds
    return {name: x.reshape(parts, rows // parts, *x.shape[1:]) for name, x in arrays.items()}


def _position(iterators: list[str], folder: Path) -> Any:
    """The data position to resume at, from those of all processes' iterators."""
    positions = [checkpoints.unpack_position(text) for text in iterators]
    if all(isinstance(position, dict) and "lanes" in position for position in positions):
        return {"lanes": {number: at for position in positions for number, at in position["lanes"].items()}}
    if len(positions) != jax.process_count():
        raise InputError(
            f"{folder} was trained by {len(positions)} processes and cannot be resumed by {jax.process_count()}"
        )
    return positions[jax.process_index()]
