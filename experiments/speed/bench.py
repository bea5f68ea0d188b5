"""How fast is this machine at training and at decoding, strategy by strategy?

    make speed

Random weights of the size of `configs/demo.py` (any other: `python experiments/speed/bench.py CONFIG`); one batch of
random grids, one utterance of three seconds. Two CPU cores: about three minutes, most of it compilation. Expected: a
real-time factor of decoding far below 1 for every strategy.
"""

import sys
import time

import jax
import numpy as np
from flax import nnx

from audiolm_jax import config, data, generate, losses, serialization, sharding
from audiolm_jax.evaluation import speed
from audiolm_jax.model import Transformer
from audiolm_jax.serialization import SerializationConfig, cost, documents
from audiolm_jax.vocab import Vocab

SECONDS = 3.0


def batch(grid, vocab: Vocab, rows: int, length: int, frames: int) -> tuple[dict, float]:
    """Random training rows, one document each, and how many frames they hold."""
    rng = np.random.default_rng(0)
    out = {f"{name}_BLS": np.zeros((rows, length, grid.streams), np.int32) for name in ("tokens", "targets", "heads")}
    out |= {"weights_BLS": np.zeros((rows, length, grid.streams), np.float32)}
    out |= {f"{name}_BL": np.zeros((rows, length), np.int32) for name in ("positions", "ahead", "segments")}
    held = 0
    for b in range(rows):
        at, segment = 0, 1
        while True:
            codes_TQ = rng.integers(0, vocab.codebook_size, (frames, vocab.codebooks))
            row = documents.training_row((("audio", codes_TQ),), grid, vocab, rng)
            end = at + len(row["positions"])
            if end > length:
                break
            for name, values in row.items():
                out[f"{name}_{'BL' if values.ndim == 1 else 'BLS'}"][b, at:end] = values
            out["segments_BL"][b, at:end] = segment
            at, segment, held = end, segment + 1, held + frames
    return out, held


def gradient_seconds(model: Transformer, vocab: Vocab, rows: dict, repeats: int = 3) -> float:
    """Forward and backward pass, the best of a few, compiled beforehand."""
    graph, params = nnx.split(model)

    @jax.jit
    def gradient(params, rows):
        def loss(params):
            model = nnx.merge(graph, params)
            hidden = model(rows["tokens_BLS"], rows["positions_BL"], rows["segments_BL"], rows["ahead_BL"])
            return losses.loss_and_sums(hidden, model.output_DV(), rows, vocab, model.rules, 0.0)[0]

        return jax.grad(loss)(params)

    rows = sharding.shard_batch(rows, jax.sharding.get_mesh(), model.rules)
    jax.block_until_ready(gradient(params, rows))
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(gradient(params, rows))
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def main(name: str) -> None:
    settings = config.load(name)
    codec, section = config.section(settings, "codec"), config.section(settings, "data")
    vocab = Vocab(section.codebooks or codec.codebooks, codec.codebook_size, section.max_frames)
    sizes, frames = config.section(settings, "model"), round(SECONDS * codec.frame_rate)
    for key, value in speed.hardware().items():
        print(f"{key}: {value}")
    rates = speed.probe(sizes.compute_dtype)
    print(f"matrix products: {rates.flops_per_second / 1e9:.0f} GFLOP/s")
    print(f"memory: {rates.bytes_per_second / 1e9:.1f} GB/s")
    columns = ("train audio s/s", "MFU", "decode RTF", "first audio s", "passes")
    print(f"{'strategy':13s} {columns[0]:>15s} {columns[1]:>6s} {columns[2]:>11s} {columns[3]:>14s} {columns[4]:>7s}")
    for strategy in serialization.STRATEGIES:
        grid = serialization.bind(SerializationConfig(strategy=strategy), vocab.codebooks)
        with jax.set_mesh(sharding.single_device_mesh()):
            model = Transformer(sizes, vocab.size, nnx.Rngs(0))
            rows, held = batch(grid, vocab, section.batch_size, section.sequence_length, frames)
            seconds = gradient_seconds(model, vocab, rows)
        flops = cost.training_flops_per_step(sizes, vocab, section.batch_size, section.sequence_length)
        generator = generate.Generator(model, grid, vocab, codec, data.DataConfig(template=""))
        silence = np.zeros(codec.hop, np.float32)
        [timing] = speed.measure(generator, [""], rates=rates, frames=frames, prompts=[silence])
        print(
            f"{strategy:13s} {held / codec.frame_rate / seconds:15.1f} {flops / seconds / rates.flops_per_second:6.1%} "
            f"{timing.seconds / timing.audio_seconds:11.3f} {timing.first_audio_seconds:14.3f} {timing.passes:7d}"
        )


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["demo"]))
