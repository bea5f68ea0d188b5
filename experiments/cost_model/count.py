"""What does an order cost: predicted from the order alone, counted on the programs that run, measured with a clock.

    python -m experiments.cost_model.count

FLOPs are the compiler's own count of the compiled programs, with layers unrolled (a loop's body is counted once), times
how often each program ran; passes, look-ahead and bytes are those of a real generation, watched pass by pass.
"""

import argparse
import contextlib
import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from audiolm_jax import files, serialization
from audiolm_jax.compare.report import charts
from audiolm_jax.evaluation import speed
from audiolm_jax.model import depth, sharding
from audiolm_jax.model.config import DepthConfig, ModelConfig
from audiolm_jax.model.kernels import cpu, cpu_loss
from audiolm_jax.model.transformer import Transformer, language_model, unstack
from audiolm_jax.sampling import causal, masked, performance, requests
from audiolm_jax.serialization import Grid, LevelView, SerializationConfig, cost, documents
from audiolm_jax.serialization.vocab import HEAD_CODE, TEXT_START, Vocab
from audiolm_jax.training.config import OptimizerConfig, TrainingConfig
from audiolm_jax.training.step import Adapter, init_state, program, train_step

TEXT = 30  # ids; with BOS and <audio> a prompt of 32 positions, which is a bucket: nothing is padded
SMALL = ModelConfig(layers=2, width=256, heads=4, kv_heads=2, head_width=64, ffn=704)
WIDE = ModelConfig(layers=3, width=384, heads=6, kv_heads=6, head_width=64, ffn=1024, mlp="plain")
CASES = {"small": (64, 4, SMALL), "wide": (96, 2, WIDE)}  # frames, codebooks, sizes
CODES = 256
DEPTH = DepthConfig(layers=1, width=96, heads=4, kv_heads=4, head_width=24, ffn=256)
# Of training steps, which are only counted: the same program, less time spent on machine code.
QUICK = {"xla_backend_optimization_level": 0}
STYLE = (
    ".chart{background:#fff;font-family:system-ui,sans-serif}.chart text{fill:#5c5c66;font-size:12px}"
    ".chart .name{fill:#1a1a1e;font-size:11px}.gridline{stroke:#ececea}.axis,.tick{stroke:#5c5c66}"
    ".front{display:none}.mark{fill:var(--c);stroke:var(--c)}.mark.hollow{fill:#fff;stroke-width:2}"
    ".s0{--c:#2457c5}.s1{--c:#c2540a}.s2{--c:#17734a}.s3{--c:#a12f86}.s4{--c:#0b7a85}.s5{--c:#7d6a00}.s6{--c:#5b5b66}"
)


@dataclasses.dataclass(frozen=True)
class Counted:
    """What was counted while one segment was generated; FLOPs of one run of each program."""

    passes: int
    first_passes: int  # until frame 0 was complete
    look_ahead: int  # frames after frame 0 that held a cell then
    cache_bytes: int
    flops: dict[str, float]  # program -> FLOPs of one run
    runs: dict[str, int]  # program -> how often it ran
    depth_passes: int  # of the depth network, in all steps
    dense: dict[str, cost.Pass]  # program -> what one run of it multiplies, pairs that no one sees included
    seconds: float  # of all runs one after the other, without a look at the codes; the fastest of a few times

    @property
    def total(self) -> float:
        return sum(self.flops[name] * count for name, count in self.runs.items())

    def predicted(self, config: ModelConfig, vocab: Vocab) -> float:
        """The cost model's FLOPs of the same runs, for the pairs that dense attention multiplies."""
        return sum(cost.forward_flops(config, vocab, self.dense[name]) * count for name, count in self.runs.items())


def compiled(function, *arguments, static=(), donated=(), options: dict | None = None):
    """(executable, its FLOPs as the compiler counts them)."""
    program = jax.jit(function, static_argnames=static, donate_argnames=donated, compiler_options=options)
    program = program.lower(*arguments).compile()
    return program, program.cost_analysis()["flops"]


def fastest(function, repeats: int) -> float:
    """Seconds of the fastest of `repeats` runs: what others do on the machine only ever adds."""
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(function())
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def document(vocab: Vocab, frames: int, seed: int = 0) -> documents.Document:
    codes_TQ = np.random.default_rng(seed).integers(0, vocab.codebook_size, (frames, vocab.codebooks))
    return (("text", np.full(TEXT, TEXT_START, np.int32)), ("audio", codes_TQ))


def with_depth(config: ModelConfig, grid: Grid) -> ModelConfig:
    """The sizes with a depth network, if the order needs one, of one layer: the compiler counts a loop's body once."""
    return dataclasses.replace(config, depth=DEPTH if grid.depth else None)


@contextlib.contextmanager
def counting_depth(made: list[int]) -> Iterator[None]:
    """Every pass of a depth network that is run, of programs traced inside, adds its number of positions to `made`."""
    original = depth.Depth._pass

    def counted(self, x_Mpd, *args):
        jax.debug.callback(lambda: made.append(x_Mpd.shape[1]))
        return original(self, x_Mpd, *args)

    with mock.patch.object(depth.Depth, "_pass", counted):
        yield
        jax.effects_barrier()


def generation(model: Transformer, grid: Grid, vocab: Vocab, frames: int, repeats: int = 5) -> Counted:
    """Generates one segment with the programs of sampling/, one pass at a time, and again `repeats` times to measure
    the seconds. `model` is unstacked."""
    request = requests.Request(document(vocab, frames)[:1], np.zeros((0, vocab.codebooks), np.int32), frames)
    flops, runs, dense, grids, made, prompt_cache, held, seconds = {}, {}, {}, [], [], None, 0, 0.0

    prompts = requests.prompts([request], grid, vocab, causal=grid.causal_levels > 0, guided=False)
    P = prompts.tokens_MPS.shape[1]
    placed = requests.place(prompts)
    prefill, flops["prompt"] = compiled(causal.prefill, model, *placed)
    seconds += fastest(lambda: prefill(model, *placed), repeats)
    runs["prompt"], dense["prompt"] = 1, cost.Pass(P, P * P, 0)
    if grid.causal_levels:
        fixed, state = causal.start(model, grid, vocab, [request])
        steps = int(requests.steps_of(np.asarray(state.frames_B), grid)[0])
        # As the loop makes it for chunks of a quarter.
        slots = causal.cache_sizes(steps, -(-steps // 4), model.config.window)[-1]
        cache = model.init_cache(1, slots)
        step, flops["step"] = compiled(
            causal.run_chunk,
            *(model, grid, vocab, 1, fixed, state, cache),
            static=("grid", "vocab", "steps"),
            donated=("cache",),
            options=performance.compiler_options(),
        )
        # A step draws from the position before it, then computes its own: logits of one, block of the next. Of the
        # loop over the cells of a depth network the compiler counts the first cell, which is outside, and one more.
        dense["step"] = cost.Pass(1, P + slots + 1, 1, cells=2 * grid.depth)
        prompt_cache, begun = fixed.prompt_cache, state
        while not np.asarray(state.done_B).all():
            state, cache = step(model, fixed, state, cache)
            grids.append(np.asarray(state.codes_BFQ)[0])
        if grid.depth:
            chunk = jax.jit(causal.run_chunk, static_argnames=("grid", "vocab", "steps"))
            with counting_depth(made):
                jax.block_until_ready(chunk(model, grid, vocab, steps, fixed, begun, model.init_cache(1, slots)))
        runs["step"], held = len(grids), _bytes(cache)

        def every_step():
            state, cache = begun, model.init_cache(1, slots)
            for _ in range(steps):
                state, cache = step(model, fixed, state, cache)
            return state

        seconds += fastest(every_step, repeats)
        codes_BFQ = state.codes_BFQ
    if grid.iterations:
        _, fixed = masked.start(model, grid, vocab, [request], prompt_cache)
        prompt_cache = fixed.prompt_cache
        frames_B = np.array([frames], np.int32)
        fixed = fixed._replace(frames_B=requests.place(frames_B))
        if not grid.causal_levels:
            empty_BFQ = requests.prompt_grid([request], requests.bucket(frames, requests.FRAMES), grid.codebooks)
            codes_BFQ = requests.place(empty_BFQ)
        schedule = masked.schedule([request], frames_B, grid, vocab)
        every = [requests.place(jax.tree.map(lambda x, n=n: x[n], schedule)) for n in range(len(schedule.number))]
        output_DV = model.output_DV()
        args = (model, vocab, fixed, every[0], codes_BFQ, output_DV)
        level, flops["level"] = compiled(masked.advance, *args, static=("vocab",))
        F = codes_BFQ.shape[1]
        dense["level"] = cost.Pass(F, F * (P + F), 0, F)
        begun_BFQ = codes_BFQ
        for now in every:
            codes_BFQ = level(model, fixed, now, codes_BFQ, output_DV)
            grids.append(np.asarray(codes_BFQ)[0])

        def every_level():
            codes_BFQ = begun_BFQ
            for now in every:
                codes_BFQ = level(model, fixed, now, codes_BFQ, output_DV)
            return codes_BFQ

        seconds += fastest(every_level, repeats)
        runs["level"] = len(every)
    # The causal loop draws step 0 from the prompt's pass, so passes and steps are equal in number; without a causal
    # level the prompt's pass gives the number of frames alone.
    before = 0 if grid.causal_levels else 1
    first = next(n for n, made_FQ in enumerate(grids) if (made_FQ[0] >= 0).all())
    touched = np.flatnonzero((grids[first][:frames] >= 0).any(axis=1))
    assert (grids[-1][:frames] >= 0).all()
    return Counted(
        passes=before + len(grids),
        first_passes=before + first + 1,
        look_ahead=int(touched[-1]),
        depth_passes=len(made),
        cache_bytes=_bytes(prompt_cache) + held,
        flops=flops,
        runs=runs,
        dense=dense,
        seconds=seconds,
    )


def _bytes(tree) -> int:
    """Bytes of the positions that hold a key or a value; buckets are longer than that."""
    held = (np.asarray(leaf) for leaf in jax.tree.leaves(tree))
    return sum(x[:, :, (x != 0).any(axis=(0, 1, 3))].nbytes for x in held)


def training_batch(grid: Grid, vocab: Vocab, frames: int, kind: str, rows: int = 2) -> dict[str, np.ndarray]:
    """`rows` rows of one kind, "causal" or "level", without padding, as a step takes them: [1, rows, L, ...]."""
    made = []
    for n in range(rows):
        if kind == "causal":
            row = documents.causal_row(document(vocab, frames, n), grid, vocab, 1.0)
        else:
            view = LevelView(grid.codebooks - 1, np.ones(frames, bool))
            row = documents.level_row(document(vocab, frames, n), 1, view, grid, vocab, 1.0)
        made.append(row | {"segments": np.ones(len(row["positions"]), np.int32)})
    return {
        f"{name}_{'BL' if made[0][name].ndim == 1 else 'BLS'}": np.stack([row[name] for row in made])[None]
        for name in made[0]
    }


def unrolled(model: Transformer) -> Transformer:
    """The transformer with a Block per layer; a depth network as it is trained."""
    fast = unstack(model)
    fast.depth = model.depth
    return fast


def training_step(config: ModelConfig, grid: Grid, vocab: Vocab, frames: int, kind: str, dense: bool):
    """(counted, predicted) FLOPs of one step of training/train_step, layers unrolled.

    dense: every logit and every pair, as on an accelerator; predicted for all pairs. Otherwise as on one CPU, in blocks
    whose loops follow the data (kernels/cpu.py): the compiler counts each body once, so the body is compiled alone,
    counted, and added as often as the data makes it run. Its backward pass multiplies again what the forward pass did.
    """

    class Unstacked(Adapter):
        def init(self, build, weights, key):
            return nnx.split(unrolled(language_model(config, vocab, nnx.Rngs(0))))[1]

    config, rules = with_depth(config, grid), sharding.PRESETS["data"]
    parts = program(config, vocab, rules, OptimizerConfig(), TrainingConfig(), Unstacked())
    graph = nnx.split(nnx.eval_shape(lambda: unrolled(language_model(config, vocab, nnx.Rngs(0)))))[0]
    parts = dataclasses.replace(parts, graph=graph)
    batch = training_batch(grid, vocab, frames, kind)
    _, rows, length, _ = batch["tokens_BLS"].shape

    def step(state, batch):
        return train_step(state, batch, {}, parts)

    with mock.patch.object(sharding, "on_one_cpu", lambda: not dense):
        flops = compiled(
            step, jax.eval_shape(lambda: init_state(parts, jax.random.key(0))), requests.place(batch), options=QUICK
        )[1]
        cells = (grid.codebooks - 1) * grid.depth
        finer = rows * length * cost.depth_flops(config, cells, cells * vocab.largest_codebook) if cells else 0
        flops -= finer  # its forward pass is computed again on the way back
        if dense:
            work = cost.Pass(length, length * length, length, cells=cells)
            return flops, 3 * rows * cost.forward_flops(config, vocab, work)
        flops -= 3 * finer
        if grid.depth:
            vocab, first = vocab.first, batch["heads_BLS"][..., :1]
            batch["heads_BLS"] = np.where(first == HEAD_CODE + grid.codebooks, HEAD_CODE + 1, first)
        weights = 6 * rows * length * cost.block_weights(config)
        attention, ran, each = _attention_blocks(config, batch["ahead_BL"][0])
        flops += config.layers * (ran - 1) * attention
        logits, ran_logits, each_logits = _logit_blocks(config, vocab, batch["heads_BLS"][0])
        flops += (ran_logits - 1) * logits
        return flops, weights + config.layers * ran * each + ran_logits * each_logits


def _attention_blocks(config: ModelConfig, ahead_BL: np.ndarray) -> tuple[float, int, float]:
    """(FLOPs of one block of keys forward and backward as counted, how many are visited in a layer, as predicted)."""
    rows, length = ahead_BL.shape
    H, K = config.kv_heads, config.head_width
    G = config.heads // H
    if length <= cpu.QUERIES:  # one dense square, counted with the rest of the step
        return 0.0, 1, 3 * 4 * rows * length * length * H * G * K
    C = cpu.QUERIES
    count = -(-length // C)
    last_BL = np.arange(length) + ahead_BL
    ran = sum(int(last_BL[b, i * C : (i + 1) * C].max()) // C + 1 for b in range(rows) for i in range(count))

    def body(q, k, v, seen):
        return jnp.sum(cpu.attend(q, k, v, seen))

    q, k = jax.ShapeDtypeStruct((1, C, H, G, K), jnp.float32), jax.ShapeDtypeStruct((1, C, H, K), jnp.float32)
    seen = jax.ShapeDtypeStruct((1, C, C), jnp.bool_)
    flops = compiled(jax.grad(body, argnums=(0, 1, 2)), q, k, k, seen, options=QUICK)[1]
    return flops, ran, 2 * 7 * C * C * H * G * K  # two products forward; one again and four more backward


def _logit_blocks(config: ModelConfig, vocab: Vocab, heads_BLS: np.ndarray) -> tuple[float, int, float]:
    """The same for one block of predictions of the loss."""
    R, D = cpu_loss.PREDICTIONS, config.width
    W = max(vocab.code_start, vocab.max_frames, vocab.codebook_size)  # kernels/cpu.py pads every set to the widest
    sets = np.where(heads_BLS == vocab.head_code_or_end, 3, heads_BLS)
    ran = sum(-(-int((sets == head).sum()) // R) for head in range(1, 3 + vocab.codebooks))

    def body(hidden, weight, legal, of, target):
        return sum(jnp.sum(x) for x in cpu_loss.normalisers(hidden, weight, legal, of, target))

    def like(*shape, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(shape, dtype)

    arguments = (like(R, D), like(1, W, D), like(1, W, dtype=bool), *(like(R, 1, dtype=jnp.int32),) * 2)
    flops = compiled(jax.grad(body, argnums=(0, 1)), *arguments, options=QUICK)[1]
    return flops, ran, 2 * 4 * R * D * W  # logits, again backward, and the gradients of both factors


def main(directory: Path) -> None:
    began = time.perf_counter()
    with jax.set_mesh(sharding.single_device_mesh()):
        rates = speed.probe(repeats=30)
        print(", ".join(f"{key} {value}" for key, value in speed.hardware().items()))
        print(f"{rates.flops_per_second / 1e9:.0f} GFLOP/s, {rates.bytes_per_second / 1e9:.1f} GB/s\n")
        print("MFLOP of generating one segment: visible pairs (the cost model's), all pairs multiplied, counted\n")
        print(
            "| size | T x Q | strategy | passes | in depth | until frame 0 | look-ahead | KV kB | visible | all pairs "
            "| counted | counted / all | roofline ms | measured ms |"
        )
        print("|" + "---|" * 14)
        points = []
        for size, (frames, codebooks, config) in CASES.items():
            vocab = Vocab(codebooks, CODES, frames)
            for index, (name, grid) in enumerate(every_grid(codebooks).items()):
                config = with_depth(config, grid)
                model = unstack(jax.jit(lambda c=config, v=vocab: language_model(c, v, nnx.Rngs(0)))())
                found = generation(model, grid, vocab, frames)
                said = cost.cost(grid, frames, TEXT + 2, config, vocab)
                roofline = cost.seconds_of_passes(
                    cost.generation(grid, frames, TEXT + 2),
                    config,
                    vocab,
                    rates.flops_per_second,
                    rates.bytes_per_second,
                ).sum()
                every = found.predicted(config, vocab)
                pairs = [
                    (said.passes, found.passes),
                    (said.depth_passes, found.depth_passes),
                    (said.first_passes, found.first_passes),
                    (said.look_ahead, found.look_ahead),
                    (round(said.cache_bytes / 1e3), round(found.cache_bytes / 1e3)),
                ]
                cells = [size, f"{frames} x {codebooks}", name, *(f"{a} / {b}" for a, b in pairs)]
                cells += [f"{count / 1e6:.0f}" for count in (said.flops, every, found.total)]
                cells += [f"{found.total / every:.3f}", f"{roofline * 1e3:.1f}", f"{found.seconds * 1e3:.1f}"]
                print(f"| {' | '.join(cells)} |", flush=True)
                points.append(
                    {
                        "name": name,
                        "index": index,
                        "points": [(roofline * 1e3, found.seconds * 1e3)],
                        "hollow": size != "small",
                    }
                )
        draw(points, directory / "seconds.svg")
        print("\nMFLOP of one training step on 2 rows, one layer: predicted / counted\n")
        print("| strategy | row | dense | counted / predicted | in blocks | counted / predicted |")
        print("|" + "---|" * 6)
        config, vocab, frames = dataclasses.replace(SMALL, layers=1), Vocab(4, CODES, 64), 64
        for name, grid in every_grid(4).items():
            for kind in cost.training_rows(grid, frames, TEXT + 2):
                print(f"| {name} | {kind}", end="")
                for dense in (True, False):
                    counted, said = training_step(config, grid, vocab, frames, kind, dense)
                    print(f" | {said / 1e6:.0f} / {counted / 1e6:.0f} | {counted / said:.3f}", end="")
                print(" |", flush=True)
    print(f"\n{time.perf_counter() - began:.0f} s; {directory / 'seconds.svg'}: predicted against measured")


def draw(points: list[dict], path: Path) -> None:
    title = "Milliseconds of generating one segment (filled: small, hollow: wide)"
    svg = charts.scatter_chart(points, "roofline, ms (filled: small; hollow: wide)", "measured, ms", title)
    svg = svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    files.write_text(path, svg.replace(">", f"><style>{STYLE}</style>", 1) + "\n")


def every_grid(codebooks: int) -> dict[str, Grid]:
    return {
        name: serialization.bind(SerializationConfig(strategy=name), codebooks) for name in serialization.STRATEGIES
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Predicted, counted and measured cost of every strategy.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="where seconds.svg goes")
    main(parser.parse_args().out)
