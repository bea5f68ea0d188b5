"""The small checkpoints that are kept with the ablation: one of each strategy, alike in all else, and usable."""

import dataclasses
import functools
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors import safe_open

from audiolm_jax import codecs, config, loading, sampling
from audiolm_jax.encoders import recogniser
from audiolm_jax.evaluation import intelligibility
from audiolm_jax.model import checkpoints
from audiolm_jax.model.spec import Spec

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "serialization_ablation" / "checkpoints"
LINES = ["three one four", "nine zero two seven", "six five eight eight one", "two two four"]


@functools.cache
def load(strategy: str) -> tuple[Spec, int]:
    """The Spec in a file, and how many parameters it has."""
    model, spec = checkpoints.load_safetensors(FOLDER / f"{strategy}.safetensors")
    return spec, sum(x.size for x in jax.tree.leaves(checkpoints.params_of(model)))


@pytest.fixture(scope="module")
def codec_fingerprint() -> str:
    """The fingerprint of the codec that ships now."""
    return codecs.load("default").fingerprint


@pytest.mark.parametrize("strategy", config.load(str(FOLDER.parent / "config.py")).compare.strategies)
def test_they_differ_in_the_strategy_alone(strategy, codec_fingerprint):
    spec, parameters = load(strategy)
    first, first_parameters = load("flat")
    assert (FOLDER / f"{strategy}.safetensors").stat().st_size < 4e6
    assert spec.serialization.strategy == strategy and spec.codec.fingerprint == codec_fingerprint
    alike = ["model", "vocab", "codec", "tokens"]
    if spec.model.depth:
        assert first_parameters < parameters < 1.05 * first_parameters  # compare.tolerance
        spec = dataclasses.replace(spec, model=dataclasses.replace(spec.model, depth=None))
        alike.remove("tokens")  # of the same corpus, made again on another machine, where a few codes differ
    else:
        assert parameters == first_parameters
    for key in alike:
        assert getattr(spec, key) == getattr(first, key)


def test_weights_of_half_precision_are_computed_with_in_float32():
    path = FOLDER / "delay.safetensors"
    with safe_open(path, "numpy") as file:
        assert file.get_tensor("norm/scale").dtype == np.float16
    model, _ = checkpoints.load_safetensors(path)
    assert {x.dtype for x in jax.tree.leaves(checkpoints.params_of(model))} == {np.dtype(np.float32)}


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["flat", "delay", "coarse_first", "depth", "hierarchical"])
def test_they_are_understood(strategy):
    generator = loading.load(FOLDER / f"{strategy}.safetensors", sampling.SamplingConfig(temperature=(0.5,)))
    results = generator.generate(LINES, speakers="belinda")
    transcripts = recogniser.load().transcribe([row.waveform for row in results], results[0].sample_rate)
    assert intelligibility.character_error_rate(LINES, transcripts) < 0.25
