"""The programs of a run on a mesh of described chips, traced from the very functions that the run calls.

Nothing is computed: arguments are shapes with layouts. The train step is `training.step.jitted`; sampling goes through
`causal.start`, `masked.start` and their jitted programs, on the model as `decoding.decoding_form` lays it out. An axis
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

from audiolm_jax import codecs, serialization
from audiolm_jax import config as configs
from audiolm_jax.errors import InputError
from audiolm_jax.model import checkpoints, sharding
from audiolm_jax.model.transformer import Transformer
from audiolm_jax.sampling import causal, masked, performance, requests
from audiolm_jax.serialization import Grid, cost
from audiolm_jax.serialization.vocab import TEXT_START, Vocab
from audiolm_jax.training import processes
from audiolm_jax.training.step import init_state, jitted, program

TEXT = 254  # bytes of the text before what is sampled; with BOS and <audio> a bucket of 256 positions

# Frames per second, codebooks and codes of published codecs, by the name of the repository ("": without one), from the
# config.json of each; the weights of these are not needed to plan.
PUBLISHED = {
    "encodec": {"": (75.0, 32, 1024), "encodec_32khz": (50.0, 4, 2048), "encodec_48khz": (150.0, 16, 1024)},
    "dac": {"": (44100 / 512, 9, 1024), "dac_16khz": (50.0, 12, 1024), "dac_24khz": (75.0, 32, 1024)},
    "mimi": {"": (12.5, 32, 2048)},
}


@dataclasses.dataclass(frozen=True)
class Task:
    """What is planned: the sections of a configuration, and what they say together."""

    config: ConfigDict
    vocab: Vocab
    grid: Grid
    frame_rate: float

    def section(self, name: str) -> Any:
        return configs.section(self.config, name)


@dataclasses.dataclass(frozen=True)
class Program:
    """One executable: `traced` (jax.stages.Traced), how often it runs for one unit of its kind of work, and what a
    run of it computes: positions computed and seconds of audio, on the whole mesh."""

    name: str
    traced: Any
    runs: float
    positions: int
    audio_seconds: float
    rows: int  # on the whole mesh


def task(config: ConfigDict) -> Task:
    """Raises InputError for a codec whose shape is not known, or options that do not fit each other."""
    if config.finetune.base:
        raise InputError(f"finetune.base={config.finetune.base}: fine-tuning cannot be planned; leave it empty")
    name, path = config.codec.name, str(config.codec.path or "")
    if name in PUBLISHED:
        variants = PUBLISHED[name]
        rate, codebooks, size = variants.get(path.partition("@")[0].rstrip("/").rpartition("/")[2], variants[""])
        wanted = config.codec.codebooks or codebooks
        if wanted > codebooks:
            raise InputError(f"codec.codebooks={wanted}, but {name} has {codebooks}")
        codebooks = wanted
    else:
        codec = codecs.load(**config.codec)
        rate, codebooks, size = codec.frame_rate, codec.codebooks, codec.codebook_size
    used = config.data.codebooks or codebooks
    if used > codebooks:
        raise InputError(f"data.codebooks={used}, but the codec gives {codebooks}")
    vocab = Vocab(used, size, config.data.max_frames)
    return Task(config, vocab, serialization.bind(configs.section(config, "serialization"), used), rate)


def parameters(of: Task) -> int:
    """How many the model has."""
    return checkpoints.count_parameters(of.section("model"), of.vocab)


def train(of: Task, mesh: Mesh) -> Iterator[Program]:
    """The train step on `data.batch_size` rows. A mesh is entered.

    Raises InputError for a model, batch or row that the mesh does not divide.
    """
    model, rules = of.section("model"), of.section("sharding").rules
    settings, optimizing, data = of.section("training"), of.section("optimizer"), of.section("data")
    rows, length, parts = data.batch_size, data.sequence_length, settings.accumulate
    processes.check_rows(rows, parts, mesh.shape["data"])
    check(of, mesh, rules, {"length": ("data.sequence_length", length)})
    parts_of_step = program(model, of.vocab, rules, optimizing, settings)
    state = sharding.on_mesh(jax.eval_shape(lambda: init_state(parts_of_step, jax.random.key(0))), mesh)
    laid = NamedSharding(mesh, P(None, rules.batch, rules.length))  # as `sharding.shard_batch` lays rows out

    def array(dtype: type, *rest: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((parts, rows // parts, length, *rest), dtype, sharding=laid)

    batch = {
        **{f"{key}_BLS": array(jnp.int32, of.grid.streams) for key in ("tokens", "targets", "heads")},
        **{f"{key}_BL": array(jnp.int32) for key in ("positions", "segments", "ahead")},
        "weights_BLS": array(jnp.float32, of.grid.streams),
    }
    # Rows are packed: as many seconds of audio as their positions hold.
    traced = jitted(parts_of_step).trace(state, batch, {})
    seconds = rows * length / segment_positions(of) * of.vocab.max_frames / of.frame_rate
    yield Program("train step", traced, 1, rows * length, seconds, rows)


def check(of: Task, mesh: Mesh, rules: sharding.Rules, more: dict[str, tuple[str, int]]) -> None:
    """Raises InputError for sizes of the model, and `more`, that the mesh does not divide."""
    sharding.check_sizes(mesh, rules, of.section("model").sharded_sizes(of.vocab.size) | more)


def segment_positions(of: Task) -> int:
    """Positions of a training row that holds the longest segment and its text."""
    frames, text = of.vocab.max_frames, TEXT if of.config.data.template else 0
    return text + 2 + max(cost.causal_positions(of.grid, frames), frames * (of.grid.causal_levels < of.grid.codebooks))


def sample(of: Task, mesh: Mesh, rows: int) -> Iterator[Program]:
    """Prefill, the decode chunk with the fullest cache and the masked passes, whichever the strategy has, for `rows`
    requests of the longest segment after TEXT bytes. A mesh is entered.

    Raises InputError for rows that the mesh does not divide, or a context that holds no segment.
    """
    rules, model_config, sampling = of.section("sharding").rules, of.section("model"), of.section("sampling")
    check(of, mesh, rules.for_decoding(), {"batch": ("--rows", rows)})
    context, Q = of.config.data.sequence_length, of.vocab.codebooks
    text = (("text", np.full(TEXT, TEXT_START, np.int32)),) if of.config.data.template else ()
    batch = [requests.Request(text, np.zeros((0, Q), np.int32), None, b, sampling) for b in range(rows)]
    requests.check(batch[0], of.grid, of.vocab, context)
    frames = requests.limits(batch[0], of.grid, of.vocab, context)[0]
    seconds = rows * frames / of.frame_rate

    def described(function, *args):
        return sharding.on_mesh(jax.eval_shape(function, *args), mesh)

    def build() -> Transformer:
        key = jax.random.key(0)
        return performance.decoding_form(Transformer(model_config, of.vocab.size, nnx.Rngs(params=key), rules))

    model = described(build)
    common = (of.grid, of.vocab, batch)
    causal_levels = of.grid.causal_levels
    prompts = requests.prompts(batch, of.grid, of.vocab, causal=causal_levels > 0, guided=sampling.guidance != 1)
    placed = described(lambda: requests.place(prompts))
    models, width = placed.tokens_MPS.shape[:2]
    traced = causal.prefill_program().trace(model, *placed)
    yield Program("prefill", traced, 1, models * width, seconds, rows)
    cache = None
    if causal_levels:
        fixed, state = described(lambda model: causal.start(model, *common, context), model)
        steps = int(requests.steps_of(frames, of.grid)) - requests.prefilled_steps(0, of.grid)
        chunks = -(-steps // sampling.chunk)
        slots = causal.cache_sizes(steps, sampling.chunk)[-1]
        cache = described(lambda model: model.init_cache(models, slots), model)
        traced = causal.chunk_program().trace(model, of.grid, of.vocab, sampling.chunk, fixed, state, cache)
        yield Program("decode chunk", traced, chunks, models * sampling.chunk, seconds, rows)
        cache = fixed.prompt_cache
    if of.grid.iterations:
        _, fixed = described(lambda model, cache: masked.start(model, *common, cache), model, cache)
        frames_B = np.full(rows, frames, np.int32)
        grid_BFQ = np.full((rows, requests.bucket(frames, requests.FRAMES), Q), -1, np.int32)
        passes = masked.schedule(batch, frames_B, of.grid)
        frames_B, passes, codes_BFQ = described(lambda: requests.place((frames_B, passes, grid_BFQ)))
        traced = masked.levels_program().trace(model, of.vocab, fixed._replace(frames_B=frames_B), passes, codes_BFQ)
        positions = models * grid_BFQ.shape[1] * sum(of.grid.iterations)
        yield Program("masked passes", traced, 1, positions, seconds, rows)
