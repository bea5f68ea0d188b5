"""`audiolm plan`: slices and chips, the counted work, and a small model compiled for TPUs that are not here."""

import importlib.util
import json
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from audiolm_jax import config as configs
from audiolm_jax.cli import main
from audiolm_jax.errors import InputError
from audiolm_jax.model import sharding
from audiolm_jax.plan import chips, collectives, estimate, fitting, gpus, plan, programs, table, work
from audiolm_jax.sampling import SamplingConfig
from audiolm_jax.serialization import cost

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: pip install -e '.[tpu]'"
)
SMALL = (
    *("model.layers=2", "model.width=64", "model.heads=2", "model.kv_heads=2", "model.head_width=32", "model.ffn=128"),
    *("data.sequence_length=384", "data.max_frames=64", "data.batch_size=8", "sampling.chunk=8"),
)


@pytest.fixture
def mesh():
    """No mesh: these tests enter their own, of other devices than the suite's."""


def small(*overrides: str):
    return configs.load("tiny", (*SMALL, *overrides))


# Accelerator type -> shape, chips, processes (cloud.google.com/tpu/docs/v4, v5e, v5p, v6e)
@pytest.mark.parametrize(
    ("name", "shape", "count", "processes"),
    [
        ("v5e:16x16", "v5e:16x16", 256, 64),
        ("v5e-256", "v5e:16x16", 256, 64),
        ("v5litepod-8", "v5e:2x4", 8, 1),
        ("v6e-256", "v6e:16x16", 256, 64),
        ("v6e-1", "v6e:1x1", 1, 1),
        ("v5p-512", "v5p:4x8x8", 256, 64),
        ("v5p:8x8x12", "v5p:8x8x12", 768, 192),
        ("v4-32", "v4:2x2x4", 16, 4),
        ("h100:8", "h100:8", 8, 1),
        ("h200:16", "h200:16", 16, 2),
    ],
)
def test_slices(name, shape, count, processes):
    found = chips.parse(name)
    assert (found.name, found.chips, found.hosts) == (shape, count, processes)
    if name != "v5p:8x8x12":  # of 1536 cores, but those come in several shapes
        assert chips.parse(found.sold_as) == found


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("v9-8", "chips: v4, v5e, v5p, v6e"),
        ("16x16", "write a TPU slice such as"),
        ("v5e:3x3", "its shapes are 1x1, 2x2"),
        ("v5e:16x32", "has no such slice"),
        ("v5p-500", "cores, two of a chip"),
        ("v6e-24", "is sold in 1, 4, 8, 16"),
        ("v5p:8x4x4", "has no such slice"),
        ("h100:12", "whole machines"),
        ("h100:0", "given by count"),
    ],
)
def test_slices_that_are_not_sold_are_one_sentence(name, said, capsys):
    assert main.main(["plan", "--config", "tiny", "--topology", name]) == 2
    printed = capsys.readouterr().err
    assert f"--topology={name}" in printed and said in printed and len(printed.splitlines()) == 1


@pytest.mark.parametrize(
    ("flag", "said"), [("--rows=0", "at least one"), ("--programs=sing", "choose of train, sample")]
)
def test_flags_are_checked(flag, said, capsys):
    assert main.main(["plan", "--config", "tiny", "--topology", "v5e-8", flag]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(("name", "package"), [("v5e-8", "libtpu"), ("h100:8", "jax-cuda12-plugin")])
def test_a_missing_compiler_says_how_to_get_it(name, package, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=f"(?s){package}.*pip install|pip install.*{package}"):
        chips.devices(chips.parse(name))


def test_links_of_a_ring_carry_both_ways():
    """Scaling book, chapter 3: an all-gather over an axis moves V / (two directions of a link), less without a ring."""
    pod, part, cube = (chips.parse(name) for name in ("v5e:16x16", "v5e:4x4", "v5p:4x8x8"))
    assert pod.link_bandwidth(16) == 1e11 and pod.link_bandwidth(256) == 2e11
    assert part.link_bandwidth(4) == 5e10 and part.link_bandwidth(16) == 1e11
    assert cube.link_bandwidth(256) == 6e11
    assert chips.parse("h100:16").link_bandwidth(8) == 4.5e11 and chips.parse("h100:16").link_bandwidth(16) == 5e10


def test_the_roofline_is_the_largest_of_three():
    pod = chips.parse("v5e:16x16")
    gather = collectives.Collective("all-gather", 3, 16, (("bf16", (1024, 1024)),))
    seconds = estimate.interconnect_seconds([gather], pod)
    found = estimate.roofline(197e12, 8.1e11, seconds, pod)
    assert (found["compute"], found["memory"]) == (1.0, 1.0)
    assert found["interconnect"] == pytest.approx(3 * 2 * 2**20 * 15 / 16 / 1e11)
    assert found["seconds"] == 1.0 and found["bound"] == "compute"
    twice = collectives.Collective("all-reduce", 3, 16, gather.arrays)
    assert estimate.passed_on(twice) == 2 * estimate.passed_on(gather)
    assert estimate.roofline(0, 0, seconds, pod)["bound"] == "interconnect"


def test_work_is_counted_per_chip_and_in_loops_as_often_as_they_run():
    mesh = AbstractMesh((4, 1, 2), sharding.AXES, axis_types=(AxisType.Explicit,) * 3)
    with jax.sharding.use_abstract_mesh(mesh):

        def array(*shape, spec):
            return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, spec))

        def layers(x, weights):
            def layer(x, weight):
                y = jnp.einsum("BD,DF->BF", x, weight, out_sharding=P("data", "tensor"))
                return jnp.einsum("BF,DF->BD", y, weight, out_sharding=P("data", None)), None

            return jax.lax.scan(layer, x, weights)[0]

        x, weights = array(16, 32, spec=P("data", None)), array(5, 32, 64, spec=P(None, None, "tensor"))
        found = work.count(jax.jit(layers).trace(x, weights).jaxpr)
    one = 2 * 4 * 32 * 32  # rows and features of a chip
    assert found.flops == 5 * 2 * one
    assert found.bytes == 5 * 2 * 2 * (4 * 32 + 32 * 32 + 4 * 32)


def test_work_of_a_train_step_is_that_of_the_cost_model():
    """Forward and twice that backward, whole squares of attention, and the logits once more (they are not kept)."""
    spec, run = programs.describe(small("model.dtype=bfloat16"))
    mesh = sharding.make_mesh(run.sharding)
    with jax.set_mesh(mesh):
        [step] = programs.train(spec, run, mesh)
        counted = work.count(step.traced.jaxpr).flops * mesh.size
    length, model = spec.data.sequence_length, spec.model
    dense = cost.Pass(length, length**2, length)
    logits = cost.forward_flops(model, spec.vocab, cost.Pass(0, 0, length))
    expected = step.rows * (3 * cost.forward_flops(model, spec.vocab, dense) + logits)
    assert counted == pytest.approx(expected, rel=0.05)


def test_seconds_of_a_step_are_those_of_whole_segments():
    for strategy in ("flat", "delay", "hierarchical", "masked"):
        spec, _ = programs.describe(small(f"serialization.strategy={strategy}"))
        rows = cost.training_rows(spec.grid, 64, programs.TEXT + 2)
        assert programs.segment_positions(spec) == max(row.positions for row in rows.values())


@pytest.mark.parametrize(
    ("codec", "shape"),
    [
        (("codec.name=mimi", "codec.path=kyutai/mimi@main", "codec.codebooks=8"), (12.5, 8, 2048)),
        (("codec.name=encodec", "codec.path=facebook/encodec_32khz", "codec.codebooks=4"), (50.0, 4, 2048)),
        (("codec.name=encodec", "codec.path=anywhere", "codec.codebooks=8"), (75.0, 8, 1024)),
        (("codec.name=encodec_stereo", "codec.path=facebook/encodec_32khz@main"), (50.0, 8, 2048)),
        (("codec.name=default", "codec.codebooks=8"), (25.0, 8, 1024)),
    ],
)
def test_codecs_need_no_weights(codec, shape):
    spec, run = programs.describe(configs.load("default", codec))
    assert (run.frame_rate, spec.vocab.codebooks, spec.vocab.codebook_size) == shape


@pytest.mark.parametrize(
    "message",
    [
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 18.50G of 15.75G",
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (18.50G) exceeds",
    ],
)
def test_what_a_full_memory_needs_is_read_from_the_refusal(message):
    assert estimate.too_large(message) == 18.5 * 2**30
    assert estimate.too_large("INTERNAL: something else") is None


def test_changes_need_less_memory_each():
    target, config = chips.parse("v5e-16"), small("data.batch_size=64", "training.accumulate=1", "model.remat=False")
    tried = [keys for keys, _ in fitting.changes(config, "train", None, target)]
    saving = {"model.remat": True, "sharding.preset": "fsdp"}
    assert tried == [{"model.remat": True}, saving, *(saving | {"training.accumulate": n} for n in (2, 4))]
    for keys in tried:
        configs.check(configs.load("tiny", [f"{key}={value}" for key, value in keys.items()]))
    config = small("model.heads=4", "model.kv_heads=4")
    heads = [{"sharding.preset": "fsdp_tensor", "sharding.tensor": n} for n in (2, 4)]
    assert list(fitting.changes(config, "sample", 64, target)) == [({}, 32), ({}, 16), *((keys, 16) for keys in heads)]
    assert list(fitting.changes(small("model.remat=True", "sharding.preset=fsdp"), "train", None, target)) == []


@pytest.mark.slow
@needs_libtpu
def test_the_first_change_that_fits_is_found(capsys):
    """Rows of 2,048 of a small model on one chip; a model that no change fits ends with 3."""
    wide = ["plan", "--config", "tiny", "--topology", "v5e-1", "--programs", "train", *map("--config.{}".format, SMALL)]
    rows = ["--config.data.batch_size=16384", "--config.model.remat=True", "--config.sharding.preset=fsdp"]
    assert main.main([*wide, *rows]) == 0
    printed = capsys.readouterr().out
    assert "DOES NOT FIT" in printed
    change = re.search(r"it does with (--config.training.accumulate=(\d+))$", printed.strip()).group(1)
    tried = re.findall(r"trying --config.*accumulate=(\d+) ...", printed)
    assert tried and change.endswith(f"={tried[-1]}")
    assert main.main([*wide, *rows, change]) == 0 and "everything fits" in capsys.readouterr().out
    large = ["--config.model.width=16384", "--config.model.ffn=65536", "--config.data.batch_size=1"]
    assert main.main([*wide, *large, "--config.sharding.preset=fsdp", "--config.model.remat=True"]) == 3
    assert "take a larger slice" in capsys.readouterr().out


def test_a_mesh_that_does_not_divide_is_one_sentence():
    spec, run = programs.describe(small("sharding.preset=fsdp_tensor", "sharding.tensor=4"))
    mesh = sharding.make_mesh(run.sharding)
    with jax.set_mesh(mesh), pytest.raises(InputError, match=r"model\.kv_heads=2 cannot be shared by the 4 devices"):
        next(programs.train(spec, run, mesh))
    spec, run = programs.describe(small())
    mesh = sharding.make_mesh()
    with jax.set_mesh(mesh), pytest.raises(InputError, match="--rows=12 cannot be shared by the 8 devices"):
        next(programs.sample(spec, run, SamplingConfig(), mesh, 12))


def test_numbers_are_shown_in_units_that_fit():
    assert [table.duration(x) for x in (2.0014, 0.9996, 0.0441, 3.4e-6)] == ["2 s", "1 s", "44.1 ms", "0.0034 ms"]
    assert [table.size(x) for x in (12, 2048, 3 << 20, 5 << 40)] == ["12 bytes", "2 KiB", "3 MiB", "5120 GiB"]


@pytest.mark.parametrize("kind", gpus.CARDS)
def test_cards_and_chips_agree(kind):
    memory, bandwidth = gpus.CARDS[kind][-2:]
    assert chips.GPUS[kind].memory == pytest.approx(0.75 * memory, rel=0.01)
    assert chips.GPUS[kind].bandwidth == pytest.approx(bandwidth, rel=0.01)


@needs_libtpu
def test_without_a_tpu_libtpu_says_nothing():
    """An ordinary command on a machine that has the compiler and no chip."""
    code = (
        "import sys, jax; from unittest import mock; from audiolm_jax.cli import main\n"
        "with mock.patch.object(main, 'main', lambda *_, **__: print(jax.devices()[0].platform)): main.run()"
    )
    environment = {name: value for name, value in os.environ.items() if name not in ("JAX_PLATFORMS", "XLA_FLAGS")}
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "cpu\n", "")


@needs_libtpu
@pytest.mark.parametrize("name", ["v4-8", "v5e-4", "v5e-8", "v5p-512", "v6e-1", "v6e-256"])
def test_libtpu_describes_every_kind_of_slice(name):
    target = chips.parse(name)
    found = chips.devices(target)
    assert len(found) == target.chips
    assert len({device.process_index for device in found}) == target.hosts


@needs_libtpu
def test_sampling_of_two_layers_on_v5e(capfd):
    """Through the command line: one JSON object on stdout, progress on stderr."""
    flags = [f"--config.{text}" for text in (*SMALL, "serialization.strategy=hierarchical")]
    asked = ["plan", "--config", "tiny", "--topology", "v5e-4", "--programs", "sample", "--rows", "8", "--json", *flags]
    assert main.main(asked) == 0
    out, err = capfd.readouterr()
    made = json.loads(out)
    assert "compiling the decode chunk" in err
    assert (made["topology"], made["chips"], made["fits"]) == ("v5e:2x2", 4, True)
    assert made["mesh"] == {"data": 4, "context": 1, "tensor": 1}
    prefill, chunk, passes = made["programs"]
    assert [found["name"] for found in made["programs"]] == ["prefill", "decode chunk", "masked passes"]
    # 64 frames and the end of audio in chunks of 8; prompts of 256 positions.
    assert (prefill["positions"], chunk["runs"], chunk["positions"]) == (8 * 256, 9, 8 * 8)
    assert passes["positions"] == 8 * 64 * 2  # two codebooks after the coarsest
    # Two buffers of keys and values for each layer, 2 rows of a chip, bfloat16, as long as the doubled bucket.
    assert chunk["memory"]["donated"] == 2 * 2 * 2 * 128 * 2 * 32 * 2
    assert chunk["collectives"].keys() <= set(collectives.KINDS)
    assert made["speed"]["sample"]["audio_seconds_per_second"] > 0
    assert table.program(chunk).splitlines()[1].endswith(")")


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize(("preset", "window"), [("data", 0), ("fsdp", 0), ("fsdp", 100)])
def test_the_train_step_of_two_layers_on_v5e(preset, window):
    # Widths that fill the tiles of a TPU: narrower matrices are padded.
    sizes = ("model.width=256", "model.head_width=128", "model.ffn=512")
    config = small(f"sharding.preset={preset}", f"model.window={window}", *sizes)
    made = plan.plan(config, "tiny", "v5e-8", ("train",))
    [step] = made["programs"]
    assert made["fits"] and made["processes"] == 1
    state = 3 * 4 * made["parameters"]  # parameters and two averages, float32
    assert step["memory"]["donated"] == pytest.approx(state / (8 if preset == "fsdp" else 1), rel=0.1)
    assert ("all-gather" in step["collectives"]) == (preset == "fsdp")
    again = plan.plan(config, "tiny", "v5e-8", ("train",), known={step["fingerprint"]: step})
    assert again["programs"] == [step]


@needs_libtpu
@pytest.mark.slow
def test_what_does_not_fit_is_told_with_what_to_change():
    made = plan.plan(small("data.batch_size=65536", "sharding.preset=data"), "tiny", "v5e-4", ("train",))
    [step] = made["programs"]
    assert not made["fits"] and made["speed"] == {}
    assert step["memory"]["total"] > step["memory"]["capacity"] > 16e9
    assert "DOES NOT FIT" in table.program(step) and made["change"]["train"].startswith("--config.")
