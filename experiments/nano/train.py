"""A codec language model in one file: an order on the grid of codes, a transformer, optax.

    python -m experiments.nano.train --out runs/nano/model.safetensors
    python -m experiments.nano.sample runs/nano/model.safetensors --text "three one four" --out three.wav

    recordings --codec--> codes_TQ --order--> tokens_BLS --model--> hidden_BLD --loss--> bits per second

Axes: B rows, L positions, S streams, T frames, Q codebooks, D width, X classes of predictions. The sections below are
to be edited; what is left out (resuming, several devices, evaluation) is in audiolm_jax/training and above.
"""

import argparse
import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from audiolm_jax import codecs, serialization
from audiolm_jax.data import batches, corpora, tokens
from audiolm_jax.data.config import DataConfig
from audiolm_jax.data.examples import make_vocab
from audiolm_jax.model import checkpoints, losses, sharding
from audiolm_jax.model.config import ModelConfig
from audiolm_jax.model.spec import CodecSpec, Spec
from audiolm_jax.model.transformer import Transformer

# 1. The speech: strings of digits, spoken by espeak-ng. name="folder", path=... takes recordings of your own.
CORPUS = corpora.CorpusConfig(name="synthetic", speakers=2, train=240, valid=8, test=8, unseen=0)
# The codec: "tiny" needs no weights and keeps loudness and rhythm alone; "default" is made for speech.
CODEC = CodecSpec("tiny", codebooks=3)


# 2. The order: the step at which the code of frame t and codebook q is predicted. The codes of one step are predicted
# together, each from the text and from the codes of all earlier steps.
def order(t, q, T, grid):
    """Codebook q lags q frames behind, as in MusicGen. One code after the other: t * grid.codebooks + q."""
    return t + q


def streams(grid):
    """How many codes share a position of the model: one of each codebook. One code after the other: 1."""
    return grid.codebooks


ORDER = serialization.SerializationConfig(strategy="experiments.nano.train")  # this file; or "flat", "delay", ...
# L positions in a row of a batch, B rows; shorter documents share a row.
DATA = DataConfig(sequence_length=256, batch_size=8, max_frames=128, drop_text=0.0)

# 3. The network.
MODEL = ModelConfig(layers=2, width=64, heads=2, kv_heads=1, head_width=32, ffn=128)

# 4. The optimizer.
LEARNING_RATE, WARMUP = 5e-3, 10


def codes_of_speech(directory: Path, codec) -> tokens.TokenSplit:
    """The codes of CORPUS; recordings and codes are made below `directory` unless they are there already."""
    recordings = corpora.utterances(CORPUS, directory / "corpus")
    tokens.write(recordings, codec, directory / "tokens", tokens.TokensConfig(), CORPUS)
    return tokens.open_split(directory / "tokens", "train", codec.fingerprint)


def make_step(graph: nnx.GraphDef, vocab, tx: optax.GradientTransformation, frame_rate: float):
    """The update (params, opt_state, batch) -> (params, opt_state, loss in nats per code, bits per second)."""

    def loss(params: nnx.State, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        model = nnx.merge(graph, params)
        names = ("tokens_BLS", "positions_BL", "segments_BL", "ahead_BL")
        hidden_BLD = model(*(batch[name] for name in names))
        nats, sums = losses.loss_and_sums(losses.scored(model, hidden_BLD, batch, vocab), vocab)
        codes_X = slice(2, 2 + vocab.codebooks)  # of the classes text, length, codebook 0 ..., end of audio
        bits = jnp.sum(sums["nll_X"][codes_X]) / jnp.log(2)
        return nats / sums["weight"], bits / (batch["frames"] / frame_rate)

    @jax.jit
    def step(params: nnx.State, opt_state: optax.OptState, batch: dict[str, jax.Array]):
        (nats, bits), grads = jax.value_and_grad(loss, has_aux=True)(params, batch)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, nats, bits

    return step


def train(data: Path, out: Path, steps: int, seed: int = 0) -> None:
    codec = codecs.load(CODEC.name, CODEC.path, CODEC.codebooks)
    source = codes_of_speech(data, codec)
    vocab = make_vocab(source.metadata, DATA)
    model = Transformer(MODEL, vocab.size, nnx.Rngs(seed))
    graph, params = nnx.split(model)
    schedule = optax.warmup_cosine_decay_schedule(0.0, LEARNING_RATE, WARMUP, max(steps, WARMUP + 1))
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=0.05))
    step, opt_state = make_step(graph, vocab, tx, codec.frame_rate), tx.init(params)
    grid = serialization.bind(ORDER, vocab.codebooks)
    stream = batches.training_batches(source, DATA, grid, vocab, seed)
    print(f"{sum(x.size for x in jax.tree.leaves(params)):,} parameters, {len(source)} recordings")
    print(f"uniform codes: {codec.frame_rate * np.log2(vocab.codebook_sizes).sum():.0f} bits per second")
    for number in range(1, steps + 1):
        params, opt_state, nats, bits = step(params, opt_state, next(stream))
        if number % 10 == 0 or number in (1, steps):
            print(f"step {number:4d}   loss {nats:6.3f}   {bits:6.1f} bits per second", flush=True)
    stream.close()
    codec_spec = dataclasses.replace(CODEC, fingerprint=codec.fingerprint)
    spec = Spec(MODEL, vocab, ORDER, data=DATA, codec=codec_spec, tokens=source.metadata["fingerprint"])
    out.parent.mkdir(parents=True, exist_ok=True)
    checkpoints.save_safetensors(out, nnx.merge(graph, params), spec)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("runs/nano/data"), help="corpus and codes, made if missing")
    parser.add_argument("--out", type=Path, default=Path("runs/nano/model.safetensors"), help="the trained model")
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    with jax.set_mesh(sharding.single_device_mesh()):
        train(options.data, options.out, options.steps)


if __name__ == "__main__":
    main()
