"""Trains the default codec on the synthetic corpus; see README.md beside this file.

    python experiments/default_codec/train.py --workdir /tmp/codec --minutes 75

Starting again with the same workdir goes on from the last checkpoint. The end of training writes
`<workdir>/default.safetensors`, what the package ships; a snapshot of it lies there after every checkpoint.
"""

import argparse
import dataclasses
import functools
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import objective
import optax
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import save_file
from tqdm import tqdm

from audiolm_jax import corpora, files
from audiolm_jax.codecs import frame
from audiolm_jax.codecs.frame_model import FrameConfig, FrameModel
from audiolm_jax.codecs.quantizer import quantize

# Part of every batch is decoded from a random number of leading codebooks, few ones more often: a language
# model may use only the first four, so these must be good by themselves.
PREFIXES = (1, 2, 3, 4, 6, 8, 12)
PREFIX_ODDS = (0.12, 0.18, 0.14, 0.22, 0.12, 0.13, 0.09)
COMMITMENT = 0.25
DEAD = 0.05  # a code used less than this share of an even use is replaced by something the codebook was given

TRANSFORM = optax.chain(optax.clip_by_global_norm(2.0), optax.scale_by_adam(b1=0.9, b2=0.99))


def corpus_configs() -> dict[str, corpora.CorpusConfig]:
    """What is heard: filled sentences, and some digit strings, by the same 70 voices; 8 more are never heard."""
    common = {"speakers": 70, "unseen_speakers": 8, "unseen": 48, "test": 40}
    return {
        "templates": corpora.CorpusConfig(level="templates", train=3600, valid=80, **common),
        "digits": corpora.CorpusConfig(level="digits", train=1150, valid=40, **common),
    }


def load_split(root: Path, split: str, names=("templates", "digits")) -> list[np.ndarray]:
    """All utterances of a split as int16; a corpus that is not below `root` is synthesised first."""
    audio = []
    for name in names:
        folder = root / name
        if not (folder / "manifest.jsonl").exists():
            corpora.utterances(corpus_configs()[name], folder)
        for utterance in corpora.utterances(corpora.CorpusConfig(name="folder", path=str(folder)), folder):
            if utterance.split == split:
                audio.append(np.round(utterance.load()[0] * 32767).astype(np.int16))
    return audio


def crops(audio: list[np.ndarray], offsets: np.ndarray, seed: tuple, batch: int, samples: int) -> np.ndarray:
    """A random batch `[batch, samples]`, every moment of the corpus equally likely, with gains of -6 to +3 dB."""
    rng = np.random.default_rng(seed)
    rows = np.zeros((batch, samples), np.float32)
    for row, place in zip(rows, rng.integers(0, offsets[-1], batch), strict=True):
        utterance = audio[np.searchsorted(offsets, place, side="right")]
        start = rng.integers(0, max(1, len(utterance) - samples + 1))
        piece = utterance[start : start + samples] / 32767
        gain = min(10 ** (rng.uniform(-6, 3) / 20), 0.98 / max(np.abs(piece).max(), 1e-3))
        row[: len(piece)] = piece * gain
    return rows


def init(config: FrameConfig, seed: int) -> tuple:
    """The graph of the model and the whole state of training."""
    graph, params = nnx.split(FrameModel(config, nnx.Rngs(seed)))
    q, k, z = config.codebooks, config.codebook_size, config.latent
    return graph, {
        "params": params,
        "optimizer": TRANSFORM.init(params),
        "books": jnp.zeros((q, k, z)),
        "share": jnp.full((q, k), 1 / k),  # running share of the frames that use a code
        "sum": jnp.zeros((q, k, z)),  # running mean over frames of what was given to a code
    }


def encode(graph, params, waveform_BN):
    model = nnx.merge(graph, params)
    return model.encoder(waveform_BN, model.encoder.initial_state(len(waveform_BN)))[0]


def quantized(latents, books, prefix_B):
    """Straight-through quantisation of each row with its own number of codebooks; and what the update needs."""
    used_QB = jnp.arange(len(books))[:, None] < prefix_B
    codes, rows, given = quantize(jax.lax.stop_gradient(latents), books)
    value = (rows * used_QB[:, :, None, None]).sum(0)
    # relative, so that shrinking the latents does not pay
    miss = ((latents - value) ** 2).mean() / jax.lax.stop_gradient(latents.var(axis=(0, 1)).mean())
    return latents + jax.lax.stop_gradient(value - latents), miss, (jnp.moveaxis(codes, -1, 0), given, used_QB)


def loss_terms(config, graph, params, books, waveform_BN, prefix_B):
    """(loss, (terms, what the codebook update needs)); `prefix_B` None trains without quantisation."""
    model = nnx.merge(graph, params)
    latents, found, miss = encode(graph, params, waveform_BN), None, 0.0
    if prefix_B is not None:
        latents, miss, found = quantized(latents, books, prefix_B)
    output, _ = model.decoder(latents, model.decoder.initial_state(len(waveform_BN)))
    terms = objective.reconstruction(output[:, config.delay :], waveform_BN[:, : -config.delay], config.sample_rate)
    terms["commit"] = miss
    return terms["total"] + COMMITMENT * miss, (terms, found)


def follow(state: dict, found: tuple, decay, key) -> dict:
    """Moves the codebooks to the running means of what they are given (van den Oord et al. 2017, arXiv:1711.00937,
    appendix A.1), and puts a random given vector where a code has died."""
    codes_QBT, given_QBTZ, used_QB = found
    books, share, total = state["books"], state["share"], state["sum"]
    q, k, z = books.shape
    weight = jnp.broadcast_to(used_QB[:, :, None], codes_QBT.shape).reshape(q, -1).astype(jnp.float32)
    weight = weight / jnp.maximum(weight.sum(1, keepdims=True), 1)
    codes, given = codes_QBT.reshape(q, -1), given_QBTZ.reshape(q, -1, z)
    level = jnp.arange(q)[:, None]
    share = decay * share + (1 - decay) * jnp.zeros((q, k)).at[level, codes].add(weight)
    total = decay * total + (1 - decay) * jnp.zeros((q, k, z)).at[level, codes].add(weight[..., None] * given)
    books = total / jnp.maximum(share, 1e-9)[..., None]
    dead = share < DEAD / k
    picks = given[level, jax.random.randint(key, (q, k), 0, given.shape[1])]
    books = jnp.where(dead[..., None], picks, books)
    share = jnp.where(dead, 0.5 / k, share)
    total = jnp.where(dead[..., None], books * share[..., None], total)
    return {**state, "books": books, "share": share, "sum": total}


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def train_step(config, graph, state, waveform_BN, prefix_B, rate, decay, key):
    """One step of Adam and of the codebooks; `prefix_B` None: without quantisation."""
    grad = jax.grad(
        lambda params: loss_terms(config, graph, params, state["books"], waveform_BN, prefix_B), has_aux=True
    )
    gradient, (terms, found) = grad(state["params"])
    updates, optimizer = TRANSFORM.update(gradient, state["optimizer"])
    params = jax.tree.map(lambda p, u: p - rate * u, state["params"], updates)
    state = {**state, "params": params, "optimizer": optimizer}
    if prefix_B is not None:
        state = follow(state, found, decay, key)
    return state, terms


@functools.partial(jax.jit, static_argnums=(0, 1))
def valid_terms(config, graph, params, books, waveform_BN, prefix_B):
    return loss_terms(config, graph, params, books, waveform_BN, prefix_B)[1][0]


def kmeans_books(graph, params, batches, config: FrameConfig, seed: int) -> dict:
    """Codebooks by k-means on real latents, level by level on what the earlier levels leave."""
    latents = jax.jit(functools.partial(encode, graph))
    residual = np.concatenate([np.asarray(latents(params, b)).reshape(-1, config.latent) for b in batches])
    rng, books, shares = np.random.default_rng(seed), [], []

    @jax.jit
    def lloyd(rows, book):
        code = ((book**2).sum(-1) - 2 * rows @ book.T).argmin(-1)
        count = jnp.zeros(len(book)).at[code].add(1.0)
        mean = jnp.zeros_like(book).at[code].add(rows) / jnp.maximum(count, 1)[:, None]
        return jnp.where(count[:, None] > 0, mean, book), code, count

    for _ in tqdm(range(config.codebooks), desc="k-means", unit="codebook"):
        book = jnp.asarray(residual[rng.choice(len(residual), config.codebook_size, replace=False)])
        for _ in range(8):
            book, code, count = lloyd(residual, book)
        book, code, count = np.asarray(book), np.asarray(code), np.asarray(count)
        residual = residual - book[code]
        books.append(book)
        shares.append(np.maximum(count, 0.5) / len(residual))
    books, shares = jnp.asarray(np.stack(books)), jnp.asarray(np.stack(shares), jnp.float32)
    return {"books": books, "share": shares, "sum": books * shares[..., None]}


def save_checkpoint(path: Path, state: dict, progress: dict) -> None:
    """Every array of the state by its path in the tree, progress as JSON; whole or not at all."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    arrays = {jax.tree_util.keystr(key): np.asarray(leaf) for key, leaf in leaves}
    with files.replacing(path) as temporary:
        save_file(arrays, temporary, metadata={"progress": json.dumps(progress)})


def load_checkpoint(path: Path, state: dict) -> tuple[dict, dict]:
    with safe_open(path, framework="numpy") as file:
        leaves, tree = jax.tree_util.tree_flatten_with_path(state)
        arrays = [jnp.asarray(file.get_tensor(jax.tree_util.keystr(key))) for key, _ in leaves]
        return jax.tree.unflatten(tree, arrays), json.loads(file.metadata()["progress"])


def prefixes(rng: np.random.Generator, batch: int, codebooks: int, full: float) -> np.ndarray:
    """How many codebooks each row is decoded from: all for a share of `full`, a random prefix for the others."""
    count = round(batch * full)
    allowed = np.array(PREFIXES) < codebooks
    odds = np.array(PREFIX_ODDS) * allowed
    random = rng.choice(PREFIXES, batch - count, p=odds / odds.sum())
    return np.concatenate([np.full(count, codebooks), random]).astype(np.int32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True, help="checkpoints, log and result")
    parser.add_argument("--corpus", type=Path, help="where the corpus is or goes (default: <workdir>/corpus)")
    parser.add_argument("--steps", type=int, default=12000, help="training ends after so many steps ...")
    parser.add_argument("--minutes", type=float, help="... or so many minutes, whichever comes first")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--frames", type=int, default=32, help="frames in a training crop")
    parser.add_argument("--rate", type=float, default=1.2e-3, help="highest learning rate")
    parser.add_argument("--full", type=float, default=0.5, help="share of a batch decoded from all codebooks")
    parser.add_argument("--plain", type=float, default=0.08, help="share of training before quantisation begins")
    parser.add_argument("--checkpoint-minutes", type=float, default=3)
    parser.add_argument("--seed", type=int, default=0)
    for field in dataclasses.fields(FrameConfig):
        parser.add_argument(f"--config.{field.name}", type=int, default=field.default, dest=f"config_{field.name}")
    args = parser.parse_args()
    config = FrameConfig(**{f.name: getattr(args, f"config_{f.name}") for f in dataclasses.fields(FrameConfig)})
    args.workdir.mkdir(parents=True, exist_ok=True)
    root = args.corpus or args.workdir / "corpus"
    audio, heldout = load_split(root, "train"), load_split(root, "valid")
    offsets, held_offsets = (np.cumsum([len(a) for a in part]) for part in (audio, heldout))
    samples = args.frames * config.hop
    held = crops(heldout, held_offsets, (args.seed, 1), 48, samples)

    graph, state = init(config, args.seed)
    done = {"step": 0, "seconds": 0.0, "quantising": False}
    checkpoint = args.workdir / "checkpoint.safetensors"
    if checkpoint.exists():
        state, done = load_checkpoint(checkpoint, state)
    step, quantising, before = done["step"], done["quantising"], done["seconds"]
    started, saved, recent, average = time.time(), time.time(), {}, {}
    bar = tqdm(total=args.steps, initial=step, unit="step", mininterval=10)

    def keep() -> None:
        seconds = before + time.time() - started
        save_checkpoint(checkpoint, state, {"step": step, "seconds": seconds, "quantising": quantising})
        line = {"step": step, "seconds": round(seconds), **average}
        for books in (4, config.codebooks) if quantising else ():
            row = np.full(len(held), books, np.int32)
            terms = valid_terms(config, graph, state["params"], state["books"], held, row)
            line |= {f"valid{books}/{name}": round(float(value), 4) for name, value in terms.items()}
        with open(args.workdir / "log.jsonl", "a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")
        tqdm.write(json.dumps(line))
        if quantising:
            frame.save(args.workdir / "default.safetensors", config, state["params"], state["books"])

    while True:
        seconds = before + time.time() - started
        progress = max(step / args.steps, seconds / (60 * args.minutes) if args.minutes else 0)
        if progress >= 1:
            break
        if not quantising and progress >= args.plain:
            seeds = [(args.seed, 2, i) for i in range(40)]
            batches = [crops(audio, offsets, seed, args.batch, samples) for seed in seeds]
            state |= kmeans_books(graph, state["params"], batches, config, args.seed)
            quantising = True
        rng = np.random.default_rng((args.seed, 3, step))
        prefix = prefixes(rng, args.batch, config.codebooks, args.full) if quantising else None
        rate = args.rate * min(1, (step + 1) / 300) * 0.5 * (1 + np.cos(np.pi * progress))
        decay = 0.98 + 0.015 * progress
        key = jax.random.fold_in(jax.random.key(args.seed), step)
        batch = crops(audio, offsets, (args.seed, 4, step), args.batch, samples)
        state, terms = train_step(config, graph, state, batch, prefix, np.float32(rate), np.float32(decay), key)
        # the metrics of the step before, so that this one runs while they are read
        for name, value in recent.items():
            average[name] = round(0.98 * average.get(name, float(value)) + 0.02 * float(value), 4)
        if not np.isfinite(average.get("total", 0.0)):
            raise SystemExit(f"step {step - 1}: the loss is not finite; the last checkpoint is {checkpoint}")
        recent, step = terms, step + 1
        bar.set_postfix(average, refresh=False)
        bar.update()
        if time.time() - saved > 60 * args.checkpoint_minutes:
            keep()
            saved = time.time()
    keep()


if __name__ == "__main__":
    main()
