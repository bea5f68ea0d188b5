"""The small checkpoints that are kept with the ablation: one of each strategy, alike in all else, and usable."""

import json
from pathlib import Path

import pytest
from safetensors import safe_open

from audiolm_jax import codecs, generate, sampling, serialization
from audiolm_jax.evaluation import intelligibility, recogniser

FOLDER = Path(__file__).resolve().parent.parent / "experiments" / "serialization_ablation" / "checkpoints"
LINES = ["three one four", "nine zero two seven", "six five eight eight one", "two two four"]


def described(strategy: str) -> tuple[dict, int]:
    """What a file says about itself, and its parameters."""
    with safe_open(FOLDER / f"{strategy}.safetensors", "numpy") as file:
        sizes = [file.get_tensor(name).size for name in sorted(file.keys())]
        return json.loads(file.metadata()["about"]), sum(sizes)


@pytest.mark.parametrize("strategy", serialization.STRATEGIES)
def test_they_differ_in_the_strategy_alone(strategy):
    about, parameters = described(strategy)
    first, first_parameters = described("flat")
    assert (FOLDER / f"{strategy}.safetensors").stat().st_size < 16e6
    assert about["serialization"]["strategy"] == strategy and parameters == first_parameters
    assert about["codec"]["fingerprint"] == codecs.load("default").fingerprint  # of the codec that ships now
    for key in ("model", "vocab", "codec", "tokens"):
        assert about[key] == first[key]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["flat", "delay", "coarse_first", "hierarchical"])
def test_they_are_understood(strategy):
    generator = generate.load(FOLDER / f"{strategy}.safetensors", sampling.SamplingConfig(temperature=(0.5,)))
    made = generator.generate(LINES, speakers="belinda")
    heard = recogniser.load().transcribe([row.waveform for row in made], made[0].sample_rate)
    assert intelligibility.character_error_rate(LINES, heard) < 0.25
