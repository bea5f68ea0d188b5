"""The programs of a run on a mesh of described chips, traced from the very functions that the run calls.

Nothing is computed: arguments are shapes with shardings. The train step is `training.step.jitted`; sampling goes
through `causal.start`, `masked.start` and their jitted programs, on the model of `performance.decoding_form`. An axis
letter not named here is one of `model/transformer.py` or of `sampling/`.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from audiolm_jax import codecs
from audiolm_jax import config as configs
from audiolm_jax.data.examples import make_vocab
from audiolm_jax.errors import InputError
from audiolm_jax.model import sharding
from audiolm_jax.model.config import Rules
from audiolm_jax.model.spec import Spec, model_of
from audiolm_jax.model.transformer import Transformer, language_model
from audiolm_jax.sampling import SamplingConfig, causal, masked, performance, requests
from audiolm_jax.serialization import cost, pieces
from audiolm_jax.serialization.vocab import TEXT_START
from audiolm_jax.training import processes
from audiolm_jax.training.loop import Run
from audiolm_jax.training.step import init_state, jitted, program

TEXT = 254  # bytes of the text before what is sampled; with BOS and <audio> a bucket of 256 positions


@dataclasses.dataclass(frozen=True)
class Program:
    """One executable: `traced` (jax.stages.Traced), its runs for one step or one batch of requests, and what one run
    computes on all chips together: positions, seconds of audio, rows."""

    name: str
    traced: Any
    runs: float
    positions: int
    audio_seconds: float
    rows: int


def describe(config: ConfigDict) -> tuple[Spec, Run]:
    """The model of a checked configuration and its training run.

    Raises InputError for a codec whose shape is not known, or options that do not fit each other.
    """
    if config.finetune.base:
        raise InputError(f"finetune.base={config.finetune.base}: fine-tuning cannot be planned; leave it empty")
    codec = codecs.about(**config.codec)
    sections = ("serialization", "data", "training", "optimizer", "sharding")
    order, data, *of_run = (configs.section(config, name) for name in sections)
    sizes = {"codebooks": codec.codebooks, "codebook_size": codec.codebook_size}
    vocab = make_vocab(sizes, data, pieces.size_of(configs.section(config, "text")), config.text.given)
    framing = "beside" if config.model.text_rows else "markers"
    return Spec(model_of(config, order, vocab), vocab, order, framing, data), Run(
        *of_run, config.seed, codec.frame_rate
    )


def train(spec: Spec, run: Run, mesh: Mesh) -> Iterator[Program]:
    """The train step on `data.batch_size` rows. A mesh is entered.

    Raises InputError for a model, batch or row that the mesh does not divide.
    """
    rules, parts, streams, inputs = run.sharding.rules, run.training.accumulate, spec.grid.streams, spec.grid.inputs
    rows, length = spec.data.batch_size, spec.data.sequence_length
    processes.check_rows(rows, parts, mesh.shape["data"])
    check(spec, mesh, rules, ("length", "data.sequence_length", length))
    static = program(spec.model, spec.vocab, rules, run.optimizer, run.training)
    state = sharding.on_mesh(jax.eval_shape(lambda: init_state(static, jax.random.key(0))), mesh)
    batch_sharding = NamedSharding(mesh, P(None, rules.batch, rules.length))  # that of `sharding.shard_batch`

    def array(dtype: type, *rest: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((parts, rows // parts, length, *rest), dtype, sharding=batch_sharding)

    batch = {
        "tokens_BLS": array(jnp.int32, inputs),
        **{f"{key}_BLS": array(jnp.int32, streams) for key in ("targets", "heads")},
        **{f"{key}_BL": array(jnp.int32) for key in ("positions", "segments", "ahead")},
        "weights_BLS": array(jnp.float32, streams),
    }
    # Rows are packed: as many seconds of audio as their positions hold.
    traced = jitted(static).trace(state, batch, {})
    seconds = rows * length / segment_positions(spec) * spec.vocab.max_frames / run.frame_rate
    yield Program("train step", traced, 1, rows * length, seconds, rows)


def check(spec: Spec, mesh: Mesh, rules: Rules, more: tuple[str, str, int]) -> None:
    """Raises InputError for sizes of the model, and `more`, that the mesh does not divide."""
    sharding.check_sizes(mesh, rules, [*spec.model.sharded_sizes(spec.vocab.size), more])


def segment_positions(spec: Spec) -> int:
    """Positions of a training row that holds the longest segment and its text."""
    grid, frames, text = spec.grid, spec.vocab.max_frames, TEXT if spec.data.template else 0
    return text + 2 + max(cost.causal_positions(grid, frames), frames * (grid.causal_levels < grid.codebooks))


def sample(spec: Spec, run: Run, sampling: SamplingConfig, mesh: Mesh, rows: int) -> Iterator[Program]:
    """Prefill, the decode chunk with the fullest cache and the masked passes, whichever the strategy has, for `rows`
    requests of the longest segment after TEXT bytes. A mesh is entered.

    Raises InputError for rows that the mesh does not divide, or a context that holds no segment.
    """
    rules, grid, vocab, context = run.sharding.rules, spec.grid, spec.vocab, spec.data.sequence_length
    check(spec, mesh, rules.for_decoding(), ("batch", "--rows", rows))
    text = (("text", np.full(TEXT, TEXT_START, np.int32)),) if spec.data.template else ()
    if grid.framing.texts:
        text = (("given", np.ones((TEXT, 2), np.int32)), ("beside", np.ones(1, np.int32)))
    no_prompt = np.zeros((0, grid.codebooks), np.int32)
    batch = [requests.Request(text, no_prompt, None, b, sampling) for b in range(rows)]
    requests.check(batch[0], grid, vocab, context)
    frames = requests.limits(batch[0], grid, vocab, context)[0]
    seconds = rows * frames / run.frame_rate

    def shapes(function, *args):
        return sharding.on_mesh(jax.eval_shape(function, *args), mesh)

    def build() -> Transformer:
        key = jax.random.key(0)
        return performance.decoding_form(language_model(spec.model, vocab, nnx.Rngs(params=key), rules), vocab)

    model = shapes(build)
    common = (grid, vocab, batch)
    prompts = requests.prompts(batch, grid, vocab, causal=grid.causal_levels > 0, guided=sampling.guidance != 1)
    placed = shapes(lambda: requests.place(prompts))
    models, width = placed.tokens_MPS.shape[:2]
    traced = causal.prefill.trace(model, *placed)
    yield Program("prefill", traced, 1, models * width, seconds, rows)
    cache = None
    if grid.causal_levels:
        fixed, state = shapes(lambda model: causal.start(model, *common, context), model)
        steps = int(requests.steps_of(frames, grid)) - requests.prefilled_steps(0, grid)
        chunks = -(-steps // sampling.chunk)
        slots = causal.cache_sizes(steps, sampling.chunk, spec.model.window)[-1]
        cache = shapes(lambda model: model.init_cache(models, slots), model)
        traced = causal.chunk_program().trace(model, grid, vocab, sampling.chunk, fixed, state, cache)
        yield Program("decode chunk", traced, chunks, models * sampling.chunk, seconds, rows)
        cache = fixed.prompt_cache
    if grid.iterations:
        _, fixed = shapes(lambda model, cache: masked.start(model, *common, cache), model, cache)
        frames_B = np.full(rows, frames, np.int32)
        codes_BFQ = np.full((rows, requests.bucket(frames, requests.FRAMES), grid.codebooks), -1, np.int32)
        positions = models * codes_BFQ.shape[1] * sum(grid.iterations)
        passes = masked.schedule(batch, frames_B, grid, vocab)
        frames_B, passes, codes_BFQ = shapes(lambda: requests.place((frames_B, passes, codes_BFQ)))
        traced = masked.run_levels.trace(model, vocab, fixed._replace(frames_B=frames_B), passes, codes_BFQ)
        yield Program("masked passes", traced, 1, positions, seconds, rows)
