"""The train step, a pure function of (state, batch), and the loop around it.

The workdir is the run: started again with the same configuration it resumes from its latest checkpoint and ends as if
it had never stopped, bit for bit, data position and keys included; on another number of processes or devices the data
go on in the same order, and sums are rounded otherwise. Exit codes: SIGINT and SIGTERM save after the current step and
end the process with 130 and 143 (`Interrupted`); a loss or gradient that is not finite raises `Diverged` and leaves the
latest checkpoint, which is always of a finite step, alone.

Several processes (`distributed.py`) go through the same steps. A signal that reaches one of them has to stop all after
the same one: every step takes a number from each process and gives back the largest, an all-reduce of one integer in
the executable that has all-reduces anyway. It is read with the other metrics, while the next step runs, and that is the
last one. (JAX's own preemption notice asks the coordinator in every step and takes SIGTERM for itself.)
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from audiolm_jax import files
from audiolm_jax.errors import InputError
from audiolm_jax.families.finetune import Base
from audiolm_jax.model import checkpoints
from audiolm_jax.model.sharding import ShardingConfig, check_sizes, make_mesh, on_mesh, shard_batch
from audiolm_jax.model.transformer import ModelConfig, Transformer
from audiolm_jax.serialization.vocab import Vocab
from audiolm_jax.training import chips, processes
from audiolm_jax.training import metrics as recording
from audiolm_jax.training import optimizer as optimizers
from audiolm_jax.training import workdir as workdirs
from audiolm_jax.training.step import TrainingConfig, TrainState, initialiser, step_program


class Diverged(RuntimeError):
    """The loss or the gradient of a step was NaN or infinite."""


class Interrupted(SystemExit):
    """SIGINT or SIGTERM, after the state was saved; the exit code is 128 + the signal's number."""


# For an executable that runs once: random numbers take XLA far longer to optimise than to draw.
_RUN_ONCE = {"xla_backend_optimization_level": 0}


def train(
    workdir: str | Path,
    batches: Iterator[dict[str, np.ndarray]],
    vocab: Vocab,
    model: ModelConfig,
    sharding: ShardingConfig,
    optimizer: optimizers.OptimizerConfig,
    training: TrainingConfig,
    *,
    seed: int = 0,
    about: dict[str, Any] | None = None,
    frame_rate: float = 1.0,
    probe: Callable[[int, Transformer], dict[str, Any]] | None = None,
    progress: bool = True,
    devices: list[jax.Device] | None = None,
    base: Base | None = None,
) -> TrainState:
    """Trains to `training.steps`, resuming from the workdir's latest checkpoint; returns the final state.

    batches: infinite iterator of this process's rows (the batch dict of `data.py`), with `get_state`/`set_state` like
    `data.Batches`, whose position other processes can take over, or a grain iterator. about: plain JSON values to keep
    with the weights and to compare on resume (serialization, codec fingerprint, data). frame_rate: frames per second of
    audio. probe: given (step, model) returns name -> number or (waveform, sample rate) for TensorBoard. base: the
    imported run that this one starts from (None: random weights); batches then hold text_BE and text_valid_BE.

    Raises InputError for a workdir of another configuration (naming the keys), one that cannot be written, a batch
    that does not fit the mesh; `Diverged`; `Interrupted`.
    """
    workdir = files.place(workdir)
    about = checkpoints.describe(model, vocab, **(about or {}))
    sections = {"sharding": sharding, "optimizer": optimizer, "training": training}
    mesh, alone = make_mesh(sharding, devices), jax.process_count() == 1
    check_sizes(mesh, sharding.rules, model.sharded_sizes(vocab.size))
    if probe is not None and training.probe_every and not alone:
        raise InputError(
            f"training.probe_every={training.probe_every} needs the whole model in one process; set it to 0 for "
            f"{jax.process_count()} processes"
        )
    workdirs.claim(workdir, {**about, **{k: dataclasses.asdict(v) for k, v in sections.items()}, "seed": seed})
    with (
        jax.set_mesh(mesh),
        checkpoints.manager(workdir, training.keep) as manager,
        processes.signals() as received,
        processes.together("Diverged"),
    ):
        tx = optimizers.make(optimizer, training.steps)
        graph, init = initialiser(model, vocab, sharding.rules, training, tx, base)
        key, given, frozen, whole = jax.random.key(seed), None, {}, None
        start = manager.latest_step() or 0
        if base is not None:
            base.settle(workdir)
            given = base.params(model, sharding.rules, needed=base.partly or not start)
            frozen = base.frozen(given)
            merge = jax.jit(base.whole)
            whole = (lambda trained: merge(trained, frozen)) if base.partly else None
        if start:
            state, position = _restore(manager, start, jax.eval_shape(init, key, given), mesh, training.ema > 0, whole)
            batches.set_state(_position(position["iterators"], workdir))
        else:
            state, position = jax.jit(init, compiler_options=_RUN_ONCE)(key, given), {"seconds": 0.0}
        del given  # the step is given the state's buffers, and frees them
        if start >= training.steps:
            return state
        step_fn = step_program(graph, tx, optimizer, training, vocab, sharding.rules, alone, base)
        stop = received if alone else []  # the signal that ends the run, once every process knows of it
        peak = chips.peak_flops(training.peak_tflops)
        recorder = recording.Recorder(workdir, vocab, start, position["seconds"], training.steps, progress)
        with contextlib.closing(recorder):

            def finish(step: int, metrics: dict, shape: tuple[int, ...]) -> None:
                """Reads the metrics of a step (waiting for it) and writes them if they are due."""
                metrics = jax.device_get(metrics)
                if metrics.get("signal"):
                    stop.append(int(metrics["signal"]))
                if not (np.isfinite(metrics["loss"]) and np.isfinite(metrics["grad_norm"])):
                    last = manager.latest_step()
                    raise Diverged(
                        f"step {step}: loss {metrics['loss']}, gradient norm {metrics['grad_norm']}; "
                        + (f"checkpoint {last} is intact" if last else "there is no checkpoint yet")
                    )
                recorder.bar.update(1)
                if step % training.log_every == 0 or step == training.steps:
                    interval = (step - 1) % training.log_every + 1
                    rows, positions = shape[0] * shape[1] * interval, shape[2]
                    flops = recording.train_flops(model, vocab, rows, positions, metrics["sums"]["count_X"])
                    recorder.log(step, metrics, flops, peak, frame_rate)

            pending = None
            shards = processes.shards_here(mesh, sharding.rules)
            for step in range(start + 1, training.steps + 1):
                batch = _split(next(batches), training.accumulate, shards)
                where = batches.get_state()
                batch = shard_batch(batch, mesh, sharding.rules, leading=1)
                flags = () if alone else (processes.flag(mesh, received[0] if received else 0),)
                if step == start + 1 and not alone:
                    step_fn = step_fn.lower(state, batch, frozen, *flags).compile()
                    processes.meet("compiled")
                state, metrics = step_fn(state, batch, frozen, *flags)
                if pending is not None:
                    finish(*pending)  # of the step before, while this one runs
                pending = (step, metrics, batch["tokens_BLS"].shape)
                probing = probe is not None and training.probe_every and step % training.probe_every == 0
                saving = step % training.checkpoint_every == 0 or step == training.steps or stop
                if saving or probing:
                    finish(*pending)
                    pending = None
                if saving:
                    params, rest = _for_inference(state, whole)
                    everywhere = processes.everyone(checkpoints.pack_position(where))
                    position = {"iterators": everywhere, "seconds": recorder.seconds}
                    recorder.save()
                    checkpoints.save(manager, step, params, rest, position, about)
                if probing:
                    recorder.probe(step, probe(step, nnx.merge(graph, _for_inference(state, whole)[0])))
                if stop and step < training.steps:
                    break
            with checkpoints.readable_errors(workdir):
                manager.wait_until_finished()
    if stop and step < training.steps:
        raise Interrupted(128 + stop[0])
    return state


def _for_inference(state: TrainState, whole: Callable[[dict], dict] | None = None) -> tuple[dict, dict]:
    """(parameters for inference, everything else) as plain trees; together they are the state.

    whole: trained -> all parameters, where not all are trained; then the trained ones are among the rest.
    """
    rest = {"step": state.step, "opt_state": state.opt_state, "key": state.key, "sums": state.sums}
    if whole is not None:
        rest |= {"params": state.params, "ema": state.ema} if state.ema else {"params": state.params}
        return whole(state.ema or state.params), rest
    return (state.ema, rest | {"params": state.params}) if state.ema else (state.params, rest)


def _restore(
    manager: Any, step: int, state: TrainState, mesh: Any, ema: bool, whole: Callable | None
) -> tuple[TrainState, dict]:
    # Where not all is trained, those for inference follow from the rest, and are not read.
    params, rest = _for_inference(on_mesh(state, mesh), whole and (lambda _: None))
    params, rest, position = checkpoints.restore(manager, step, params, rest)
    if whole is not None:
        return TrainState(**{"ema": {}, **rest}), position
    if ema:
        return TrainState(params=rest.pop("params"), ema=params, **rest), position
    return TrainState(params=params, ema={}, **rest), position


def _split(batch: dict[str, np.ndarray], parts: int, shards: int) -> dict[str, np.ndarray]:
    """[rows, ...] -> [parts, rows / parts, ...]; shards: parts into which the rows are split here."""
    rows = len(batch["tokens_BLS"])
    processes.check_rows(rows, parts, shards)
    rows_of = {name: x for name, x in batch.items() if np.ndim(x)}  # not the totals that data.py adds
    return {name: x.reshape(parts, rows // parts, *x.shape[1:]) for name, x in rows_of.items()}


def _position(iterators: list[str], workdir: Path) -> Any:
    """Where to go on, from the position of the iterator of every process."""
    found = [checkpoints.unpack_position(text) for text in iterators]
    if all(isinstance(position, dict) and "lanes" in position for position in found):
        return {"lanes": {number: at for position in found for number, at in position["lanes"].items()}}
    if len(found) != jax.process_count():
        raise InputError(
            f"{workdir} was trained by {len(found)} processes and cannot be resumed by {jax.process_count()}"
        )
    return found[jax.process_index()]
