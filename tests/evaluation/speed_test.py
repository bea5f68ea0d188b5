"""Times are those of real generation, and passes are counted as the order predicts."""

import subprocess
import sys
import time

import numpy as np
import pytest
from flax import nnx

from audiolm_jax import codecs
from audiolm_jax.errors import InputError
from audiolm_jax.evaluation import speed
from audiolm_jax.model.config import ModelConfig
from audiolm_jax.model.spec import Spec
from audiolm_jax.model.transformer import Transformer
from audiolm_jax.sampling import SamplingConfig
from audiolm_jax.sampling.generator import Generator
from audiolm_jax.serialization import SerializationConfig
from audiolm_jax.serialization.vocab import Vocab
from experiments import timing

VOCAB = Vocab(4, 16, 60)
MODEL = ModelConfig(layers=1, width=16, heads=1, kv_heads=1, head_width=16, ffn=16)
RATES = speed.Rates(1e9, 1e9)


@pytest.mark.parametrize(
    ("options", "passes"),
    [
        ({"strategy": "delay"}, 9 + 3),
        ({"strategy": "hierarchical"}, 9 + 1 + 3),
        ({"strategy": "masked", "iterations": (3, 1, 1, 1)}, 1 + 6),
    ],
    ids=lambda value: value["strategy"] if isinstance(value, dict) else "",
)
def test_passes_and_times_of_real_generation(options, passes):
    spec = Spec(MODEL, VOCAB, SerializationConfig(**options))
    model = Transformer(MODEL, VOCAB.size, nnx.Rngs(0))
    generator = Generator(model, spec, codecs.load("tiny"), SamplingConfig(chunk=4))
    timings = speed.measure(generator, ["one", "two"], repeats=2, rates=RATES, frames=9)
    assert len(timings) == 2
    for measured in timings:
        assert measured.frames == 9
        assert measured.audio_seconds == pytest.approx(9 * generator.codec.hop / generator.codec.sample_rate)
        assert 0 < measured.first_audio_seconds <= measured.seconds
        assert measured.passes == measured.predicted.passes == passes
        assert 0 < measured.predicted_first_audio_seconds <= measured.predicted_seconds


def test_a_machine_has_rates_and_a_description():
    rates = speed.probe(size=64, repeats=1)
    assert rates.flops_per_second > 1e5
    assert rates.bytes_per_second > 1e6
    hardware = speed.hardware()
    assert hardware["processor"]
    assert hardware["cores"] >= 1
    assert "jax" in hardware
    assert all(isinstance(value, str) or np.isfinite(value) for value in hardware.values())


def test_nothing_to_time_is_named():
    with pytest.raises(InputError, match="0 texts and 3 repeats"):
        speed.measure(None, [])


def test_programs_take_turns_until_the_time_is_spent():
    order = []
    times = timing.take([lambda: order.append("a"), lambda: order.append("b")], budget=0, least=2)
    assert order == ["a", "b", "a", "b"] and [len(durations) for durations in times] == [2, 2]
    assert len(timing.take([lambda: None], budget=60, most=4)[0]) == 4


@pytest.mark.skipif(not timing.STAT.exists(), reason="the system does not say what others use")
def test_a_busy_machine_is_refused_and_this_process_is_no_other():
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        with pytest.raises(InputError, match=r"other processes use .* cores, at most 0\.02"):
            timing.refuse_busy(most=0.02, seconds=1)
    finally:
        busy.kill()
        busy.wait()
    before = timing.Others()
    ended = time.process_time() + 0.3
    while time.process_time() < ended:
        pass
    used, own, wall = (now - then for now, then in zip(timing._seconds(), before.before, strict=True))
    assert own >= 0.29 and before() <= max(0.0, used - own + 0.05) / wall
