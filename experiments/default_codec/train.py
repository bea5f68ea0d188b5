"""Trains the default codec on the synthetic corpus; see README.md beside this file.

    python -m experiments.default_codec.train --workdir /tmp/codec --minutes 75

Started again with the same workdir it resumes from the last checkpoint; Ctrl-C writes one. Beside every checkpoint lies
`<workdir>/default.safetensors`, weights as the package ships them, for `evaluate.py`, which makes a page of them.
"""

import argparse
import dataclasses
import functools
import json
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tqdm import tqdm

from audiolm_jax import files
from audiolm_jax.cli import allocator
from audiolm_jax.codecs import default
from audiolm_jax.codecs.default_model import FrameConfig, FrameModel
from audiolm_jax.codecs.streaming import Tape
from audiolm_jax.errors import InputError, exit_code
from audiolm_jax.training import processes
from experiments.default_codec import adversary, codebooks, corpus, objective

COMMITMENT = 0.25
MATCHING = 2.0  # of the hidden layers of the adversary, relative to its hinge loss (DAC, arXiv:2306.06546, section 3.5)

WEIGHTS, LOG = "default.safetensors", "log.jsonl"  # in the workdir

TRANSFORM = optax.chain(optax.clip_by_global_norm(2.0), optax.scale_by_adam(b1=0.9, b2=0.99))
ADVERSARY_TRANSFORM = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(3e-4, b1=0.5, b2=0.9))


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of a run; a resumed run must have the same."""

    config: FrameConfig = dataclasses.field(default_factory=FrameConfig)
    batch: int = 16
    frames: int = 32  # in a training crop
    rate: float = 1.2e-3  # highest learning rate
    full: float = 0.5  # share of a batch decoded from all codebooks
    plain: float = 0.08  # share of training before quantisation begins
    books: str = "means"  # how codebooks learn, one of `codebooks.WAYS`
    only: str = ""  # "decoder": encoder and codebooks stay as they are, and so do the codes of everything
    adversary: float = 0.0  # weight of the hinge loss; 0 trains without an adversary
    adversary_from: float = 0.2  # share of training before the codec listens to it
    adversary_every: int = 4  # one row in this many goes to the adversary
    seed: int = 0

    def __post_init__(self) -> None:
        for name, allowed in (("books", codebooks.WAYS), ("only", ("", "decoder"))):
            if getattr(self, name) not in allowed:
                known = ", ".join(repr(word) for word in allowed)
                raise InputError(f"--{name}={getattr(self, name)}: it must be one of {known}")


class Networks:
    """The fixed part of codec and adversary (static under jit)."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.codec, _ = nnx.split(nnx.eval_shape(lambda: FrameModel(settings.config, nnx.Rngs(0))))
        judge = adversary.Adversary(adversary.AdversaryConfig(), nnx.Rngs(settings.seed))
        self.judge, self.judge_params = nnx.split(judge)


def init(networks: Networks, start: Path | None) -> dict:
    """The state of training, from random weights or from those of a file."""
    settings, config = networks.settings, networks.settings.config
    if start:
        _, model, books_QKZ = default.load(start).config
    else:
        model = FrameModel(config, nnx.Rngs(settings.seed))
        books_QKZ = jnp.zeros((config.codebooks, config.codebook_size, config.latent))
    params = nnx.state(model)
    state = {"params": params, "codebooks": codebooks.state_of(settings.books, books_QKZ)}
    state["optimizer"] = TRANSFORM.init({"params": params, "books": books_QKZ})
    if settings.adversary:
        state["judge"] = networks.judge_params
        state["judge_optimizer"] = ADVERSARY_TRANSFORM.init(networks.judge_params)
    return state


def encode(networks, params, waveform_BN):
    return nnx.merge(networks.codec, params).encoder(waveform_BN, Tape())


def loss_terms(networks, trained: dict, waveform_BN, prefix_B, judge=None):
    """(loss, (terms, what the codebooks need, output and target)).

    prefix_B: codebooks of each row, None to train without quantisation. judge: parameters of the adversary, if the
    codec is to please it.
    """
    settings, config = networks.settings, networks.settings.config
    latents, found, losses = encode(networks, trained["params"], waveform_BN), None, {}
    if prefix_B is not None:
        latents, losses, found = codebooks.quantized(latents, trained["books"], prefix_B)
    output = nnx.merge(networks.codec, trained["params"]).decoder(latents, Tape())
    output, target = output[:, config.delay :], waveform_BN[:, : -config.delay]
    terms = objective.reconstruction(output, target, config.sample_rate) | losses
    loss = terms["total"] + COMMITMENT * losses.get("commit", 0.0)
    if settings.books == "gradient":
        loss += losses.get("books", 0.0)
    if judge is not None:
        every = settings.adversary_every
        heard = adversary.generator_losses(nnx.merge(networks.judge, judge), target[::every], output[::every])
        terms |= dict(zip(("hinge", "matching"), heard, strict=True))
        loss += settings.adversary * (terms["hinge"] + MATCHING * terms["matching"])
    return loss, (terms, found, (output, target))


@functools.partial(jax.jit, static_argnums=(0, 6), donate_argnums=1)
def train_step(networks, state, waveform_BN, prefix_B, rate, decay, pleased, key):
    """One step of the codec, its codebooks and the adversary.

    prefix_B: see `loss_terms`. decay: of the running means. pleased: the codec listens to the adversary already.
    """
    settings = networks.settings
    trained = {"params": state["params"], "books": state["codebooks"]["books"]}
    judge = state.get("judge") if pleased else None
    grad = jax.grad(lambda trained: loss_terms(networks, trained, waveform_BN, prefix_B, judge), has_aux=True)
    gradient, (terms, found, (output, target)) = grad(trained)
    if settings.only:
        gradient = jax.tree.map(jnp.zeros_like, gradient) | {"params": only(settings.only, gradient["params"])}
    updates, optimizer = TRANSFORM.update(gradient, state["optimizer"])
    trained = jax.tree.map(lambda p, u: p - rate * u, trained, updates)
    state = {**state, "params": trained["params"], "optimizer": optimizer}
    if prefix_B is not None and not settings.only:
        books = {**state["codebooks"], "books": trained["books"]}
        state["codebooks"] = codebooks.follow(books, found, decay, key)
    if settings.adversary:
        real, fake = (x[:: settings.adversary_every] for x in (target, jax.lax.stop_gradient(output)))
        fooled = lambda params: adversary.discriminator_loss(nnx.merge(networks.judge, params), real, fake)  # noqa: E731
        terms["adversary"], gradient = jax.value_and_grad(fooled)(state["judge"])
        updates, state["judge_optimizer"] = ADVERSARY_TRANSFORM.update(gradient, state["judge_optimizer"])
        state["judge"] = optax.apply_updates(state["judge"], updates)
    return state, terms


def only(part: str, gradient: nnx.State) -> nnx.State:
    """The gradient with nothing but that of one part of the codec."""
    flat = nnx.to_flat_state(gradient)
    return nnx.from_flat_state([(p, v if p[0] == part else jax.tree.map(jnp.zeros_like, v)) for p, v in flat])


@functools.partial(jax.jit, static_argnums=0)
def valid_terms(networks, trained, waveform_BN, prefix_B):
    return loss_terms(networks, trained, waveform_BN, prefix_B)[1][0]


def save_checkpoint(path: Path, state: dict, progress: dict) -> None:
    """Every array of the state by its path in the tree, progress as JSON; the file is replaced at once."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    arrays = {jax.tree_util.keystr(key): np.asarray(leaf) for key, leaf in leaves}
    files.write_safetensors(path, arrays, {"progress": json.dumps(progress)})


def load_checkpoint(path: Path, state: dict, settings: dict) -> tuple[dict, dict]:
    """(state, progress). Raises InputError if the checkpoint is of a run with other settings."""
    tensors, metadata = files.read_safetensors(path, "--workdir")
    progress = json.loads(metadata["progress"])
    if progress["settings"] != settings:
        changed = [name for name in settings if progress["settings"].get(name) != settings[name]]
        raise InputError(
            f"--workdir: {path} is of a run with other settings ({', '.join(changed)}); give these again, or another "
            "--workdir"
        )
    leaves, tree = jax.tree_util.tree_flatten_with_path(state)
    return jax.tree.unflatten(tree, [jnp.asarray(tensors[jax.tree_util.keystr(key)]) for key, _ in leaves]), progress


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True, help="checkpoints, log and result")
    parser.add_argument("--corpus", type=Path, help="where the corpus is or goes (default: <workdir>/corpus)")
    parser.add_argument("--start", type=Path, help="weights to begin with, their configuration included")
    parser.add_argument("--steps", type=int, default=12000, help="training ends after this many steps ...")
    parser.add_argument("--minutes", type=float, help="... or this many minutes, whichever comes first")
    parser.add_argument("--checkpoint-minutes", type=float, default=3)
    for holder, prefix in ((Settings, ""), (FrameConfig, "config.")):
        for field in dataclasses.fields(holder):
            if field.name != "config":
                flag = f"--{prefix}{field.name.replace('_', '-')}"
                parser.add_argument(flag, type=field.type, default=field.default, dest=prefix + field.name)
    return parser.parse_args()


def main() -> int:
    args = parse()
    allocator.keep_memory()
    values = vars(args)
    if args.start and not args.start.is_file():
        raise InputError(f"--start={args.start}: there is no such file; weights of the codec 'default' are needed")
    config = FrameConfig(**{f.name: values[f"config.{f.name}"] for f in dataclasses.fields(FrameConfig)})
    config = default.load(args.start).config[0] if args.start else config
    own = {f.name: values[f.name] for f in dataclasses.fields(Settings) if f.name != "config"}
    settings = Settings(config=config, **own)
    networks = Networks(settings)
    args.workdir.mkdir(parents=True, exist_ok=True)
    state = init(networks, args.start)
    done = {"step": 0, "seconds": 0.0, "quantising": bool(args.start), "settings": dataclasses.asdict(settings)}
    checkpoint = args.workdir / "checkpoint.safetensors"
    if checkpoint.exists():
        state, done = load_checkpoint(checkpoint, state, done["settings"])
    return run(args, networks, state, done, checkpoint)


def first_codebooks(networks: Networks, params, batches: list[np.ndarray]) -> dict:
    """K-means on the latents of some batches."""
    settings, config = networks.settings, networks.settings.config
    latents = jax.jit(functools.partial(encode, networks))
    rows = np.concatenate([np.asarray(latents(params, batch)).reshape(-1, config.latent) for batch in batches])
    return codebooks.kmeans(settings.books, rows, config.codebooks, config.codebook_size, settings.seed)


def validate(networks: Networks, state: dict, held: np.ndarray) -> dict:
    """The terms of the loss on held-out speech, from few codebooks and from all."""
    trained, found = {"params": state["params"], "books": state["codebooks"]["books"]}, {}
    for count in (4, networks.settings.config.codebooks):
        terms = valid_terms(networks, trained, held, np.full(len(held), count, np.int32))
        found |= {f"valid{count}/{name}": round(float(value), 4) for name, value in terms.items()}
    return found


def run(args: argparse.Namespace, networks: Networks, state: dict, done: dict, checkpoint: Path) -> int:
    settings, config = networks.settings, networks.settings.config
    root = args.corpus or args.workdir / "corpus"
    audio, heldout = corpus.load_split(root, "train"), corpus.load_split(root, "valid")
    offsets, held_offsets = (np.cumsum([len(a) for a in part]) for part in (audio, heldout))
    samples = settings.frames * config.hop
    held = corpus.crops(heldout, held_offsets, (settings.seed, 1), 48, samples)
    step, quantising, before = done["step"], done["quantising"], done["seconds"]
    started, saved, recent, average = time.time(), time.time(), {}, {}
    bar = tqdm(total=args.steps, initial=step, unit="step", mininterval=10)

    def keep() -> None:
        seconds = before + time.time() - started
        save_checkpoint(checkpoint, state, done | {"step": step, "seconds": seconds, "quantising": quantising})
        line = {"step": step, "seconds": round(seconds), **average}
        if quantising:
            line |= validate(networks, state, held)
            default.save(args.workdir / WEIGHTS, config, state["params"], state["codebooks"]["books"])
        with open(args.workdir / LOG, "a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")
        tqdm.write(json.dumps(line))

    with processes.signals() as received:
        while not received:
            seconds = before + time.time() - started
            progress = max(step / args.steps, seconds / (60 * args.minutes) if args.minutes else 0)
            if progress >= 1:
                break
            if not quantising and progress >= settings.plain:
                seeds = [(settings.seed, 2, i) for i in range(40)]
                heard = [corpus.crops(audio, offsets, seed, settings.batch, samples) for seed in seeds]
                state["codebooks"], quantising = first_codebooks(networks, state["params"], heard), True
            rng = np.random.default_rng((settings.seed, 3, step))
            prefix = codebooks.prefixes(rng, settings.batch, config.codebooks, settings.full) if quantising else None
            rate = np.float32(settings.rate * min(1, (step + 1) / 300) * 0.5 * (1 + np.cos(np.pi * progress)))
            decay = np.float32(0.98 + 0.015 * progress)
            key = jax.random.fold_in(jax.random.key(settings.seed), step)
            batch = corpus.crops(audio, offsets, (settings.seed, 4, step), settings.batch, samples)
            pleased = settings.adversary > 0 and quantising and progress >= settings.adversary_from
            state, terms = train_step(networks, state, batch, prefix, rate, decay, pleased, key)
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
    bar.close()
    return 128 + received[0] if received else 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
