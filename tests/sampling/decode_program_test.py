"""The compiled chunk of a model of MusicGen's shape, guided and attending to states: what its loop does in memory."""

import dataclasses
import functools
import math
import re

import jax
import numpy as np
import pytest
from flax import nnx

import audiolm_jax
from audiolm_jax import serialization
from audiolm_jax.model import sharding
from audiolm_jax.model.config import ModelConfig
from audiolm_jax.model.transformer import Transformer
from audiolm_jax.sampling import SamplingConfig, causal, performance
from audiolm_jax.sampling.requests import Request
from audiolm_jax.serialization import SerializationConfig
from audiolm_jax.serialization.vocab import Vocab
from experiments.colab import random_musicgen
from tests.helpers.compiling import AS_USERS

VOCAB = Vocab(4, 40, 1500, extra_ids=4)
GRID = serialization.bind(SerializationConfig(strategy="delay"), VOCAB.codebooks, "bare")
CONFIG = ModelConfig(
    layers=2,
    width=32,
    heads=2,
    kv_heads=2,
    head_width=16,
    ffn=48,
    norm="layernorm",
    mlp="exact",
    positions="sinusoidal",
    cross_width=24,
)
SLOTS, STEPS = 448, 8


def model_of(**changes) -> Transformer:
    model = Transformer(dataclasses.replace(CONFIG, **changes), VOCAB.size, nnx.Rngs(0))
    return performance.for_decoding(model, sharding.single_device_mesh(), VOCAB)


def test_every_stack_of_layers_that_the_model_names_is_unstacked_and_cast():
    class WithDepth(Transformer):
        STACKS = ("layers", "depth_layers")

    config = dataclasses.replace(CONFIG, dtype="bfloat16", qk_norm=True)
    model, depth = (WithDepth(config, VOCAB.size, nnx.Rngs(0)), Transformer(config, VOCAB.size, nnx.Rngs(1)))
    model.depth_layers = depth.layers
    fast = performance.for_decoding(model, sharding.single_device_mesh(), VOCAB)
    for blocks, stack in ((fast.layers, model.layers), (fast.depth_layers, depth.layers)):
        assert [block.qkv_DHAK.dtype for block in blocks] == ["bfloat16"] * config.layers
        assert [block.k_norm_K.dtype for block in blocks] == ["float32"] * config.layers
        assert all(block.rules == block.cross.rules == fast.rules for block in blocks)
        np.testing.assert_array_equal(blocks[1].qkv_DHAK[...], stack.qkv_DHAK[1].astype("bfloat16"))


def requests(rows: int, frames: int = 1500, chunk: int = STEPS) -> list[Request]:
    sampling = SamplingConfig(top_k=(5,), guidance=3.0, chunk=chunk)
    states = np.random.default_rng(0).standard_normal((7, CONFIG.cross_width)).astype(np.float32)
    nothing = np.zeros((0, VOCAB.codebooks), np.int32)
    return [Request((), nothing, frames, seed, sampling, states) for seed in range(rows)]


@functools.cache
def compiled(dtype: str, rows: int):
    """(what was asked for, what the compiler made of it)."""
    model = model_of(dtype=dtype)
    fixed, state = causal.start(model, GRID, VOCAB, requests(rows))
    cache = model.init_cache(2 * rows, SLOTS)
    lowered = causal.chunk_program().lower(model, GRID, VOCAB, STEPS, fixed, state, cache)
    return lowered.as_text(), lowered.compile(AS_USERS)


def results(text: str, size: int) -> list[tuple[str, str]]:
    """(opcode, shape) of every instruction of a program whose result has so many elements, also inside of fusions."""
    found = re.findall(r"= (\w+\[([\d,]+)\])\S* ([\w-]+)\(", text)
    return [(opcode, shape) for shape, axes, opcode in found if math.prod(map(int, axes.split(","))) == size]


CELLS = pytest.mark.parametrize(
    ("dtype", "rows"), [("float32", 1), ("bfloat16", 2), pytest.param("bfloat16", 1, marks=pytest.mark.slow)]
)


@CELLS
def test_a_cache_is_written_once_a_step_and_never_copied_turned_or_converted(dtype, rows):
    text = compiled(dtype, rows)[1].as_text()
    size = 2 * rows * CONFIG.heads * SLOTS * CONFIG.head_width
    found = results(text, size)
    opcodes = [opcode for opcode, _ in found if opcode not in ("parameter", "get-tuple-element")]
    assert opcodes.count("dynamic-update-slice") == 2 * CONFIG.layers
    # Each of these writes is what a fusion returns.
    assert set(opcodes) <= {"dynamic-update-slice", "fusion"} and opcodes.count("fusion") <= 2 * CONFIG.layers
    assert {shape for _, shape in found} == {f"f32[{2 * rows},{CONFIG.heads},{SLOTS},{CONFIG.head_width}]"}
    assert f'"known_trip_count":{{"n":"{STEPS}"}}' in text


@CELLS
def test_intermediate_results_need_less_memory_than_half_the_keys_of_a_layer(dtype, rows):
    _, program = compiled(dtype, rows)
    of_a_layer = 2 * rows * CONFIG.heads * SLOTS * CONFIG.head_width * 4
    assert program.memory_analysis().temp_size_in_bytes < of_a_layer / 2


@pytest.mark.parametrize("rows", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_products_of_sixteen_bits_are_summed_in_thirty_two(rows):
    asked, program = compiled("bfloat16", rows)
    products = re.findall(r"stablehlo\.dot_general.*: \(tensor<([^>]*)>, tensor<([^>]*)>\) -> tensor<([^>]*)>", asked)
    sixteen = [product for product in products if "bf16" in product[0] + product[1]]
    # Per layer: queries, keys and values; out; of the states the same without keys and values; up; down. And logits.
    assert len(sixteen) == 6 * CONFIG.layers + 1
    assert all(result.endswith("xf32") for *_, result in products)
    assert not re.search(r"= bf16\S* dot\(", program.as_text())


def test_thirty_seconds_compile_one_program_per_size_of_the_cache():
    model = model_of(layers=1)
    program = causal.chunk_program()
    before = program._cache_size()
    sizes = causal.cache_sizes(1503, 32)
    made = list(causal.generate(model, GRID, VOCAB, requests(1, chunk=32)))
    assert len(made) == len(sizes) == 47 and sorted(set(sizes)) == [128, 256, 512, 1024, 1536]
    assert program._cache_size() - before == 5
    # Another piece finds them.
    next(causal.generate(model, GRID, VOCAB, requests(2, chunk=32)[1:]))
    assert program._cache_size() - before == 5


@pytest.mark.parametrize(
    ("rows", "guidance"),
    [(1, 1.0), (3, 3.0), pytest.param(1, 3.0, marks=pytest.mark.slow), pytest.param(3, 1.0, marks=pytest.mark.slow)],
)
def test_what_is_chosen_for_a_gpu_computes_the_same(rows, guidance, monkeypatch):
    """Rows and queries that are added, top-k by digits, options of the compiler: run here, on a CPU, in float32."""
    sampling = SamplingConfig(top_k=(5,), guidance=guidance, chunk=STEPS)
    asked = [dataclasses.replace(request, sampling=sampling) for request in requests(rows, frames=20)]
    model, mesh = model_of(dtype="float32"), sharding.single_device_mesh()

    def made() -> tuple[np.ndarray, np.ndarray]:
        filled = [*asked, *[asked[-1]] * performance.missing_rows(asked, model, GRID, mesh)]
        *_, (_, state) = causal.generate(model, GRID, VOCAB, filled)
        return np.asarray(state.codes_BFQ), np.asarray(state.hidden_MD)

    codes_BFQ, hidden_MD = made()
    monkeypatch.setattr(sharding, "platform", lambda: "gpu")
    jax.clear_caches()  # what was traced for a CPU
    found_BFQ, found_MD = made()
    np.testing.assert_array_equal(found_BFQ[:rows], codes_BFQ)
    np.testing.assert_allclose(found_MD[: len(hidden_MD)], hidden_MD, atol=1e-5)
    jax.clear_caches()
    assert len(found_MD) == {(1, 1.0): 2, (1, 3.0): 2, (3, 1.0): 3, (3, 3.0): 6}[rows, guidance]


def test_the_dtype_of_a_published_model_can_be_chosen(tmp_path):
    random_musicgen.write(tmp_path)
    chosen = audiolm_jax.load(tmp_path, dtype="bfloat16").model
    assert chosen.layers[0].qkv_DHAK[...].dtype == "bfloat16" and chosen.init_cache(1, 8)[0]["k"].dtype == "float32"
    assert audiolm_jax.load(tmp_path).model.layers[0].qkv_DHAK[...].dtype == "float32"
