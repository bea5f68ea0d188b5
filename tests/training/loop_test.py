import dataclasses
import functools
import json
import os
import re
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from audiolm_jax import locks
from audiolm_jax.errors import InputError
from audiolm_jax.model import checkpoints, losses
from audiolm_jax.model.config import ModelConfig, ShardingConfig
from audiolm_jax.model.sharding import PRESETS, make_mesh, single_device_mesh
from audiolm_jax.model.spec import CodecSpec, Spec
from audiolm_jax.serialization import SerializationConfig
from audiolm_jax.serialization.vocab import Vocab
from audiolm_jax.training import loop, metrics, step
from audiolm_jax.training.config import OptimizerConfig, TrainingConfig
from audiolm_jax.training.start import Start
from audiolm_jax.training.step import SCRATCH

VOCAB = Vocab(codebooks=2, codebook_size=8, max_frames=16)
MODEL = ModelConfig(layers=2, width=16, heads=2, kv_heads=1, head_width=8, ffn=24, dropout=0.1)
PLAIN = ModelConfig(layers=2, width=16, heads=4, kv_heads=2, head_width=8, ffn=24)
B, L, S = 8, 12, 2
NO_HOOKS = loop.Hooks()


class Batches:
    """Random rows with the right heads; the position is the number of batches given."""

    def __init__(self, before=None):
        self.count, self.before = 0, before

    def __iter__(self):
        return self

    def __next__(self) -> dict:
        if self.before:
            self.before(self.count + 1)
        rng = np.random.default_rng(self.count)
        self.count += 1
        codes = rng.integers(0, VOCAB.codebook_size, (B, L, S))
        codes[..., 1] = codes[..., 0]  # something to learn
        tokens = (codes + VOCAB.code_offsets).astype(np.int32)
        targets = np.concatenate([tokens[:, 1:], np.zeros_like(tokens[:, :1])], axis=1)
        heads = np.where(targets > 0, np.array([VOCAB.head_code_or_end, 4]), 0).astype(np.int32)
        return {
            "tokens_BLS": tokens,
            "targets_BLS": targets,
            "heads_BLS": heads,
            "weights_BLS": (heads > 0).astype(np.float32) * rng.uniform(0.5, 1, (B, 1, 1)).astype(np.float32),
            "positions_BL": np.tile(np.arange(L, dtype=np.int32), (B, 1)),
            "segments_BL": np.ones((B, L), np.int32),
            "ahead_BL": np.zeros((B, L), np.int32),
        }

    def get_state(self) -> dict:
        return {"count": self.count}

    def set_state(self, state: dict) -> None:
        self.count = state["count"]


def spec_of(model=MODEL, codec="none"):
    return Spec(model, VOCAB, SerializationConfig("parallel"), codec=CodecSpec(codec, fingerprint=codec))


def run(
    workdir,
    batches=None,
    *,
    model=MODEL,
    sharding=None,
    seed=0,
    adapter=SCRATCH,
    hooks=NO_HOOKS,
    devices=None,
    **changes,
):
    """A constant learning rate does not know the number of steps: most runs here share one compiled step. A peak that
    is given need not be measured, which takes longer than a run."""
    devices = changes.pop("devices", jax.devices()[:1] if sharding is None else None)
    usual = {"steps": 6, "log_every": 2, "checkpoint_every": 3, "ema": 0.9, "peak_tflops": 1.0}
    settings = TrainingConfig(**(usual | changes))
    return loop.train(
        workdir,
        batches or Batches(),
        spec_of(model),
        loop.Run(
            settings,
            OptimizerConfig(learning_rate=1e-2, schedule="constant", warmup=2),
            sharding or ShardingConfig(),
            seed,
        ),
        adapter=adapter,
        hooks=hooks,
        progress=False,
        devices=devices,
    )


def same(a, b) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def lines(workdir) -> list[dict]:
    timed = ("seconds", "steps_per_second", "audio_seconds_per_second", "mfu")
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in timed} for row in rows]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """steps -> (state, workdir) of a run that nothing disturbs; every number of steps is run once, and only read."""

    @functools.cache
    def undisturbed(steps: int = 6, model: ModelConfig = MODEL):
        workdir = tmp_path_factory.mktemp("straight")
        with jax.set_mesh(single_device_mesh()):
            return run(workdir, steps=steps, model=model), workdir

    return undisturbed


def stop_at(step: int, number: int):
    """Asks the process to stop while batch `step` is being made."""
    return lambda count: os.kill(os.getpid(), number) if count == step else None


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_stopped_by_a_signal_and_resumed_equals_never_stopped(tmp_path, straight, number):
    undisturbed, of_straight = straight(7)
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path / "stopped", Batches(stop_at(5, number)), steps=7)
    assert stopped.value.code == 128 + number
    seen = []
    resumed = run(tmp_path / "stopped", Batches(seen.append), steps=7)
    assert seen == [6, 7]
    assert same(undisturbed, resumed)
    assert lines(of_straight) == lines(tmp_path / "stopped")
    assert [line["step"] for line in lines(of_straight)] == [2, 4, 6, 7]


def test_killed_between_checkpoints_and_resumed_equals_never_stopped(tmp_path, straight):
    """An exception at step 5 stands for a kill: what is on disk is checkpoint 3 and lines beyond it."""
    undisturbed, of_straight = straight()

    def die(count: int) -> None:
        if count == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", Batches(die))
    assert [line["step"] for line in lines(tmp_path / "killed")] == [2, 4]
    with (tmp_path / "killed" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    assert same(undisturbed, run(tmp_path / "killed"))
    assert lines(of_straight) == lines(tmp_path / "killed")


def test_another_seed_is_another_run(tmp_path, straight):
    assert not same(straight()[0].params, run(tmp_path, seed=1).params)


def test_a_finished_run_is_left_alone(tmp_path):
    state = run(tmp_path)
    assert same(state, run(tmp_path, Batches(pytest.fail)))


def test_it_learns(tmp_path):
    run(tmp_path, steps=60, checkpoint_every=60, peak_tflops=0.0)  # measured, as by default
    first, last = lines(tmp_path)[0], lines(tmp_path)[-1]
    assert last["loss"] < first["loss"] - 0.1
    assert set(last["bits"]) == {"codebook_0", "codebook_1", "end"}
    assert 0 < json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["mfu"] < 1


def test_a_loss_that_is_not_finite_stops_with_the_step_and_leaves_the_checkpoint(tmp_path, straight):
    class Poisoned(Batches):
        def __next__(self) -> dict:
            batch = super().__next__()
            if self.count == 5:
                batch["weights_BLS"][0, 0, 0] = np.nan
            return batch

    with pytest.raises(loop.Diverged, match=r"step 5: .*checkpoint 3 is intact"):
        run(tmp_path, Poisoned(), checkpoint_every=1 + 2)
    assert same(run(tmp_path), straight()[0])


def test_a_step_to_be_saved_is_checked_first(tmp_path):
    class Poisoned(Batches):
        def __next__(self) -> dict:
            batch = super().__next__()
            if self.count == 6:
                batch["weights_BLS"] = np.where(batch["heads_BLS"] > 0, np.inf, 0).astype(np.float32)
            return batch

    with pytest.raises(loop.Diverged, match="step 6"):
        run(tmp_path, Poisoned())
    with checkpoints.manager(tmp_path) as manager:
        assert manager.latest_step() == 3


class Named(Batches):
    """Batches that know their documents."""

    @property
    def documents(self) -> np.ndarray:
        return np.arange(10) + 10 * self.count

    def keys(self, documents) -> list[str]:
        return [f"clip{number}" for number in documents]


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_parameters_that_an_update_makes_infinite_are_never_saved(tmp_path, monkeypatch, ema):
    """Loss and gradient of step 4 are finite, and it is the last one and kept alone: the worst case."""

    def explode(updates, state, params=None):
        count = state + 1
        return jax.tree.map(lambda x: jnp.where(count == 4, jnp.inf, x), updates), count

    last = optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), explode)
    original = step.make_optimizer
    monkeypatch.setattr(step, "make_optimizer", lambda *a: optax.chain(original(*a), last))
    with pytest.raises(loop.Diverged) as diverged:
        run(tmp_path, Named(), steps=4, keep=1, ema=ema)
    text = str(diverged.value)
    assert re.match(r"step 4: loss \d\.\d+, grad_norm \d\.\d+, parameter_norm inf; ", text)
    assert "; the documents of its batch: clip40, clip41, clip42" in text and "clip47 and 2 more; " in text
    assert text.endswith("checkpoint 3 is intact")
    model, _ = checkpoints.restore_params(tmp_path)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(checkpoints.params_of(model)))


def test_weights_that_are_not_finite_are_not_opened(tmp_path):
    run(tmp_path / "run", steps=1)
    model, spec = checkpoints.restore_params(tmp_path / "run")
    model.norm.scale[...] = np.full(MODEL.width, np.nan, np.float32)
    checkpoints.save_weights(tmp_path / "bad", checkpoints.params_of(model), spec)
    checkpoints.save_safetensors(tmp_path / "bad.safetensors", model, spec)
    for load, path in ((checkpoints.restore_params, "bad"), (checkpoints.load_safetensors, "bad.safetensors")):
        with pytest.raises(InputError, match=r"bad.*: norm/scale holds values that are not finite"):
            load(tmp_path / path)


def test_a_run_made_longer_equals_one_that_was_always_so_long(tmp_path, straight):
    """Under a constant schedule, bit for bit; a finished run goes on."""
    short = run(tmp_path / "run", steps=3, checkpoint_every=5)
    longer = run(tmp_path / "run", steps=7)
    assert int(short.step) == 3 and same(longer, straight(7)[0])
    assert json.loads((tmp_path / "run" / "config.json").read_text())["training"]["steps"] == 7
    with pytest.raises(InputError, match=r"training\.steps is 7 there and 6 here; .*name another folder"):
        run(tmp_path / "run", steps=6)


def test_held_out_numbers_are_lines_of_their_own(tmp_path):
    def evaluate(model) -> dict:
        return {"valid_bits_per_second": float(jnp.sum(model.norm.scale[...]))}

    def die(count: int) -> None:
        if count == 6:
            raise KeyboardInterrupt

    run(tmp_path / "straight", hooks=loop.Hooks(evaluate=evaluate), evaluate_every=3)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", Batches(die), hooks=loop.Hooks(evaluate=evaluate), evaluate_every=3)
    run(tmp_path / "killed", hooks=loop.Hooks(evaluate=evaluate), evaluate_every=3)
    assert lines(tmp_path / "killed") == lines(tmp_path / "straight")
    held_out = [line for line in lines(tmp_path / "straight") if "loss" not in line]
    assert [line["step"] for line in held_out] == [3, 6]
    assert all(np.isfinite(line["valid_bits_per_second"]) for line in held_out)


def test_a_rate_after_a_resume_is_of_its_own_time(tmp_path):
    """Between the lines of steps 2 and 4 the run is stopped at step 3: time before the stop counts, too."""
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 2, "seconds": 10.0}\n{"step": 3, "valid_bits_per_second": 1.0}\n{"step": 4, "seconds": 30.0}\n'
    )
    recorder = metrics.Recorder(tmp_path, VOCAB, 3, 14.0, 6, progress=False)
    with recorder.paused():
        time.sleep(0.2)
    sums = {"nll_X": np.ones(5), "count_X": np.ones(5), "total": 1.0, "weight": 1.0, "frames": 800.0}
    numbers = {"sums": sums, "grad_norm": 1.0, "parameter_norm": 1.0, "learning_rate": 1.0}
    line = recorder.log(4, numbers, flops=8.0, peak=2.0, frame_rate=10.0)
    recorder.close()
    assert line["audio_seconds_per_second"] == pytest.approx(80 / 4, rel=0.04)  # 4 s since step 2, not one instant
    assert line["steps_per_second"] == pytest.approx(2 / 4, rel=0.04) and line["mfu"] == pytest.approx(1, rel=0.04)


def test_two_runs_in_one_workdir_are_refused(tmp_path):
    message = rf"is in use: \S+ process {os.getpid()} trains it"
    with locks.claim(tmp_path / "train.lock"), pytest.raises(InputError, match=message):
        run(tmp_path)
    run(tmp_path)


def test_a_run_may_start_from_the_weights_of_another(tmp_path, straight):
    first = run(tmp_path / "first")
    checkpoints.export_safetensors(tmp_path / "first", tmp_path / "first.safetensors")
    for source in ("first", "first.safetensors"):
        start = Start(str(tmp_path / source), spec_of())
        with jax.set_mesh(make_mesh(ShardingConfig(), jax.devices()[:1])):
            assert same(start.load(MODEL, PRESETS["data"], resumed=False)[0], first.ema)
        started = run(tmp_path / f"of-{source}", adapter=start, steps=7)
        assert int(started.step) == 7 and not same(started.params, straight(7)[0].params)
        with pytest.raises(SystemExit):
            run(tmp_path / f"stopped-{source}", Batches(stop_at(5, signal.SIGTERM)), adapter=start, steps=7)
        assert same(started, run(tmp_path / f"stopped-{source}", adapter=start, steps=7))


def test_weights_of_another_model_are_no_start(tmp_path):
    run(tmp_path / "first", steps=1)
    with pytest.raises(
        InputError, match=r"training.init_from=\S+first is another model: model.layers is 2 there and 3"
    ):
        Start(str(tmp_path / "first"), spec_of(dataclasses.replace(MODEL, layers=3)))
    with pytest.raises(InputError, match="codes of codec 'none' with other weights"):
        Start(str(tmp_path / "first"), spec_of(codec="other"))
    with pytest.raises(InputError, match="is not the folder of a training run"):
        Start(str(tmp_path / "nothing"), spec_of())
    Start(str(tmp_path / "first"), spec_of(dataclasses.replace(MODEL, dropout=0.3)))


def test_steps_are_traced(tmp_path):
    run(tmp_path, profile_steps=2)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_a_workdir_of_another_config_is_refused_naming_the_keys(tmp_path):
    run(tmp_path)
    with pytest.raises(InputError, match=r"training\.ema is 0\.9 there and 0\.5 here") as refused:
        run(tmp_path, ema=0.5, model=ModelConfig(layers=3))
    assert "model.layers is 2 there and 3 here" in str(refused.value)
    run(tmp_path, checkpoint_every=2)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["training"]["z_loss"]  # a run from before there was this key
    (tmp_path / "config.json").write_text(json.dumps(config))
    run(tmp_path)
    with pytest.raises(InputError, match=r"training\.z_loss is 0\.0 there and 0\.1 here"):
        run(tmp_path, z_loss=0.1)


@pytest.mark.parametrize("content", ["", "[1]", "{", "not json", '{"model": 1, "vocab": 2}', '{"model": {}}'])
def test_a_damaged_config_is_one_sentence(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=str(tmp_path)):
        run(tmp_path, steps=1)


def test_a_workdir_of_a_newer_version_is_told(tmp_path):
    run(tmp_path, steps=1)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["format"] == 1
    (tmp_path / "config.json").write_text(json.dumps(config | {"format": 2}))
    with pytest.raises(InputError, match=r"config.json: is of format 2, which a newer version of audiolm_jax wrote"):
        run(tmp_path, steps=1)
    del config["format"]  # as before there was one
    (tmp_path / "config.json").write_text(json.dumps(config))
    run(tmp_path, steps=1)


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        run(tmp_path / "file" / "run")


def test_a_batch_that_does_not_split_is_refused(tmp_path):
    with pytest.raises(InputError, match="accumulate=3"):
        run(tmp_path, accumulate=3)


def test_eight_devices_and_accumulated_microbatches_train_like_one_batch_on_one_device(tmp_path):
    one = run(tmp_path / "one", model=PLAIN, steps=2)
    many = run(tmp_path / "many", model=PLAIN, steps=2, sharding=ShardingConfig("fsdp_tensor", 2))
    parts = run(tmp_path / "parts", model=PLAIN, steps=2, accumulate=4)
    assert len(jax.tree.leaves(many.params)[0].sharding.device_set) == 8
    (expected,) = lines(tmp_path / "one")
    assert expected["frames"] == 2 * B * L
    for state, name in ((many, "many"), (parts, "parts")):
        # Adam divides by the root of a square that may be almost zero: parameters agree less than gradients.
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3), state.params, one.params)
        (line,) = lines(tmp_path / name)
        assert line["frames"] == expected["frames"]
        assert np.isclose(line["loss"], expected["loss"], atol=1e-5)
        assert np.isclose(line["grad_norm"], expected["grad_norm"], rtol=1e-3)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_trains_on_one_device(tmp_path, straight, preset):
    unsharded, _ = straight(1, PLAIN)
    state = run(tmp_path / preset, model=PLAIN, steps=1, sharding=ShardingConfig(preset), devices=jax.devices()[:1])
    # Adam divides by the root of a square that may be almost zero.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3), unsharded.params, state.params)


def test_a_batch_that_does_not_fit_the_mesh_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"each over 8 devices .*; choose a multiple of 16"):
        run(tmp_path, model=PLAIN, sharding=ShardingConfig("fsdp"), accumulate=2)


def test_the_step_compiles_once(tmp_path, monkeypatch):
    traced = []
    original = losses.loss_and_sums
    monkeypatch.setattr(losses, "loss_and_sums", lambda *a: traced.append(1) or original(*a))
    run(tmp_path, steps=5)
    assert len(traced) == 1


def test_the_average_starts_at_once_and_is_what_inference_gets(tmp_path):
    state = run(tmp_path)
    model, spec = checkpoints.restore_params(tmp_path)
    assert same(checkpoints.params_of(model), state.ema)
    assert not same(state.ema, state.params)
    assert spec.codec.name == "none"


def test_probes_are_recorded(tmp_path):
    seen = []

    def probe(step: int, model) -> dict:
        seen.append(step)
        return {"number": 1.0, "speech": (np.zeros(100, np.float32), 16000)}

    run(tmp_path, steps=4, probe_every=2, hooks=loop.Hooks(probe))
    assert seen == [2, 4]
    written = b"".join(path.read_bytes() for path in (tmp_path / "tensorboard").iterdir())
    assert b"speech" in written and b"RIFF" in written


@pytest.mark.parametrize("bad", [{"steps": 0}, {"ema": 1.0}, {"z_loss": -1.0}, {"keep": 0}])
def test_bad_values_are_named(bad):
    with pytest.raises(InputError, match=f"training.{next(iter(bad))}"):
        TrainingConfig(**bad)
