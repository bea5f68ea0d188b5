"""How fast is this machine at training and at decoding, strategy by strategy?

    make speed

Random weights of the size of `configs/demo.py`; one batch of random grids, one utterance of three seconds. Two CPU
cores: about three minutes, most of it compilation. Expected: a real-time factor of decoding far below 1 for every
strategy. Other sizes, rows and lengths, for instance those of a 300M model on one GPU:

    python -m experiments.speed.bench size_300m --rows 32 --seconds 30
    python -m experiments.speed.bench size_300m --rows 4 --length 6400 --seconds 30 --only flat

"codes ms" is the time of a segment without the codec, "ms a pass" that time divided by the passes of the network.
"""

import argparse
import time

import jax
import numpy as np
from flax import nnx

from audiolm_jax import codecs, config, serialization
from audiolm_jax.data import examples
from audiolm_jax.evaluation import speed
from audiolm_jax.model import losses, sharding, versions
from audiolm_jax.model.spec import Spec, model_of
from audiolm_jax.model.transformer import Transformer, language_model
from audiolm_jax.sampling.generator import Generator
from audiolm_jax.serialization import SerializationConfig, cost, documents
from audiolm_jax.serialization.vocab import Vocab


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
            return losses.loss_and_sums(losses.scored(model, hidden, rows, vocab), vocab)[0]

        return jax.grad(loss)(params)

    rows = sharding.shard_batch(rows, versions.mesh(), model.rules)
    jax.block_until_ready(gradient(params, rows))
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(gradient(params, rows))
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def codes_seconds(generator: Generator, request, repeats: int = 3) -> float:
    """The codes of one request without the codec, the median of a few, compiled beforehand."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        for _ in generator.progress([request]):
            pass
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds[1:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", default="demo", help="a name in configs/ or a path")
    parser.add_argument("--rows", type=int, default=0, help="of a training batch (default: data.batch_size)")
    parser.add_argument("--length", type=int, default=0, help="of a training row (default: data.sequence_length)")
    parser.add_argument("--seconds", type=float, default=3.0, help="of audio in every segment")
    parser.add_argument("--only", nargs="+", choices=serialization.STRATEGIES, default=list(serialization.STRATEGIES))
    options = parser.parse_args()
    settings = config.load(options.config)
    codec, section = codecs.load(**settings.codec), config.section(settings, "data")
    vocab = Vocab(section.codebooks or codec.codebooks, codec.codebook_size, section.max_frames)
    frames = round(options.seconds * codec.frame_rate)
    batch_rows, length = options.rows or section.batch_size, options.length or section.sequence_length
    for key, value in speed.hardware().items():
        print(f"{key}: {value}")
    rates = speed.probe(config.section(settings, "model").compute_dtype)
    print(f"matrix products: {rates.flops_per_second / 1e9:.0f} GFLOP/s")
    print(f"memory: {rates.bytes_per_second / 1e9:.1f} GB/s")
    columns = ("train audio s/s", "MFU", "decode RTF", "first audio s", "passes", "codes ms", "ms a pass")
    print(f"{'strategy':13s} {' '.join(f'{name:>{max(7, len(name))}s}' for name in columns)}")
    for strategy in options.only:
        order, template = SerializationConfig(strategy=strategy), examples.DataConfig(template="")
        sizes = model_of(settings, order, vocab)
        spec = Spec(sizes, vocab, order, data=template)
        grid = spec.grid
        with jax.set_mesh(sharding.single_device_mesh()):
            model = language_model(sizes, vocab, nnx.Rngs(0))
            rows, held = batch(grid, vocab, batch_rows, length, frames)
            seconds = gradient_seconds(model, vocab, rows)
        flops = cost.training_flops_per_step(sizes, vocab, batch_rows, length)
        generator = Generator(model, spec, codec)
        silence = np.zeros(codec.hop, np.float32)
        [timing] = speed.measure(generator, [""], rates=rates, frames=frames, prompts=[silence])
        [request] = generator.requests([""], frames=frames, prompts=[silence])
        codes = codes_seconds(generator, request)
        print(
            f"{strategy:13s} {held / codec.frame_rate / seconds:15.1f} {flops / seconds / rates.flops_per_second:7.1%} "
            f"{timing.seconds / timing.audio_seconds:10.3f} {timing.first_audio_seconds:13.3f} {timing.passes:7d} "
            f"{codes * 1e3:8.1f} {codes * 1e3 / timing.passes:9.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
