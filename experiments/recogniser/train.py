"""Trains the recogniser of `audiolm_jax/encoders/recogniser.py` on the synthetic corpus.

    python -m experiments.recogniser.train --data /tmp/recogniser

Makes the two corpora below --data where they are missing, trains, scores held-out sentences and unseen voices, and
writes the weights that ship with the package (--output chooses another place). Run the same command again to go
on after an interruption: the result is the same, because the batch of a step depends on the seed and the step only.
"""

import argparse
import json
from dataclasses import asdict
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm
from flax import nnx

from audiolm_jax import files
from audiolm_jax.cli import allocator
from audiolm_jax.data import corpora
from audiolm_jax.data.corpora import CorpusConfig
from audiolm_jax.encoders import recogniser
from audiolm_jax.errors import InputError
from audiolm_jax.evaluation.intelligibility import character_error_rate
from audiolm_jax.hub.weights import named

_SPEAKERS = {"shard_size": 128, "speakers": 70, "unseen_speakers": 8, "test": 40, "unseen": 48}
CORPORA = {
    "templates": CorpusConfig(level="templates", train=3600, valid=80, **_SPEAKERS),
    "digits": CorpusConfig(level="digits", train=1150, valid=40, **_SPEAKERS),
}
BUCKETS = (200, 300, 400, 900)  # log-mel frames; longer utterances are left out of training
BATCH_FRAMES = 2000  # log-mel frames in a batch, padding included
CHARACTERS = 128
CODEC_EVERY = 3  # one training sentence in this many is used through the codec as well


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder for corpora and checkpoints")
    parser.add_argument("--output", type=Path, default=recogniser.WEIGHTS, help="weights to write (.safetensors)")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--learning_rate", type=float, default=2.5e-3)
    parser.add_argument("--init", type=Path, default=None, help="weights to start from, of the same architecture")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save_every", type=int, default=200, help="steps between checkpoints")
    parser.add_argument(
        "--codec",
        default="none",
        help="codec through which some training sentences are also heard, with few or all codebooks; 'none': not",
    )
    parser.add_argument("--codec_path", default=None, help="weights of the codec, where not its own")
    parser.add_argument("--limit", type=int, default=None, help="use at most this many utterances of each split")
    return parser.parse_args()


# ---------------------------------------------------------------- data


def load_speech(flags, config):
    """{split: [(level, text, waveform)]} with waveforms brought to the recogniser's rate and level."""
    speech = {split: [] for split in corpora.SPLITS}
    for level, corpus in CORPORA.items():
        count = dict.fromkeys(corpora.SPLITS, 0)
        for utterance in tqdm.tqdm(corpora.utterances(corpus, flags.data / level), desc=f"read {level}", unit="utt"):
            count[utterance.split] += 1
            if flags.limit and count[utterance.split] > flags.limit:
                continue
            waveform = recogniser.prepare(*utterance.load(), config)
            speech[utterance.split].append((level, utterance.text, waveform))
    return speech


def resynthesise(codec, waveforms, codebooks, desc):
    """Each waveform [samples] through the codec; the number of codebooks of a batch is that of its shortest."""
    if codec.sample_rate != 16_000:
        raise InputError(f"the recogniser hears at 16000 Hz, the codec {codec.name!r} speaks at {codec.sample_rate} Hz")
    out = [None] * len(waveforms)
    order = sorted(range(len(waveforms)), key=lambda i: len(waveforms[i]))
    rows = 16
    for start in tqdm.trange(0, len(order), rows, desc=desc, unit="batch"):
        indices = order[start : start + rows]
        samples = -(-len(waveforms[indices[-1]]) // 16_000) * 16_000
        waveform_BN = np.zeros((rows, samples), np.float32)
        for row, index in enumerate(indices):
            waveform_BN[row, : len(waveforms[index])] = np.clip(waveforms[index] * 0.8, -1, 1)
        codes_BTQ = np.asarray(codec.encode(waveform_BN))
        used = codebooks[indices[0]]  # one number per batch: one decoder shape
        decoded_BN = np.asarray(codec.decode(codes_BTQ[..., :used]))
        for row, index in enumerate(indices):
            end = codec.delay + len(waveforms[index])
            out[index] = decoded_BN[row, codec.delay : end]
    return out


def log_mels(waveforms, config, rows=8):
    """Log-mel energies float16 [F, M] of each waveform, by the very function the recogniser uses."""
    features = jax.jit(partial(recogniser.log_mel, config=config))
    out = [None] * len(waveforms)
    order = sorted(range(len(waveforms)), key=lambda i: len(waveforms[i]))
    for start in range(0, len(order), rows):
        indices = order[start : start + rows]
        waveform_BN = np.zeros((rows, -(-len(waveforms[indices[-1]]) // 16_000) * 16_000), np.float32)
        for row, index in enumerate(indices):
            waveform_BN[row, : len(waveforms[index])] = waveforms[index]
        mel_BFM = np.asarray(features(waveform_BN), np.float16)
        for row, index in enumerate(indices):
            out[index] = mel_BFM[row, : -(-len(waveforms[index]) // config.hop)]
    return out


def characters(text, alphabet):
    return np.array([alphabet.index(c) + 1 for c in text], np.int32)


def epoch_batches(examples, seed, epoch):
    """Lists of example numbers, each batch of one bucket; the same for the same seed and epoch."""
    waiting = {bucket: [] for bucket in BUCKETS}
    for index in np.random.default_rng([seed, epoch]).permutation(len(examples)):
        bucket = next((b for b in BUCKETS if len(examples[index][0]) <= b), None)
        if bucket is None:
            continue
        waiting[bucket].append(index)
        if len(waiting[bucket]) == BATCH_FRAMES // bucket:
            yield bucket, waiting[bucket]
            waiting[bucket] = []


def batches(examples, seed, start):
    """Yields (step, batch) for ever from step `start`."""
    step, epoch = 0, 0
    bands = examples[0][0].shape[1]
    while True:
        for bucket, indices in epoch_batches(examples, seed, epoch):
            if step >= start:
                mel_BFM = np.zeros((len(indices), bucket, bands), np.float16)
                frames_B = np.zeros(len(indices), np.int32)
                labels_BC = np.zeros((len(indices), CHARACTERS), np.int32)
                for row, index in enumerate(indices):
                    mel, label = examples[index]
                    mel_BFM[row, : len(mel)], frames_B[row] = mel, len(mel)
                    labels_BC[row, : len(label)] = label
                yield step, {"mel_BFM": mel_BFM, "frames_B": frames_B, "labels_BC": labels_BC}
            step += 1
        epoch += 1
        if step == 0:
            raise InputError("too few utterances to fill one batch")


# ---------------------------------------------------------------- training


def augment(mel_BFM, frames_B, key):
    """Another speaker, channel and room: speed, formants, loudness, colour, noise, and masked stripes.

    Works on standardised log-mel energies [B, F, M]. Masking: Park et al. 2019; formants by warping the frequency
    axis: Jaitly and Hinton 2013.
    """
    batch, frames, bands = mel_BFM.shape
    keys = jax.random.split(key, 11)

    def uniform(i, low, high, shape=(batch,)):
        return jax.random.uniform(keys[i], shape, minval=low, maxval=high)

    rate_B = jnp.maximum(uniform(0, 0.9, 1.12), frames_B / frames)  # slower only as far as the bucket reaches
    at_BF = jnp.arange(frames) * rate_B[:, None]
    frames_B = jnp.minimum(jnp.ceil(frames_B / rate_B), frames).astype(jnp.int32)
    mel_BFM = _interpolate(mel_BFM, at_BF)
    warp_B = uniform(1, 0.92, 1.09)
    at_BM = jnp.arange(bands) * warp_B[:, None]
    mel_BFM = _interpolate(mel_BFM.swapaxes(1, 2), at_BM).swapaxes(1, 2)

    nepers = 1 / recogniser._MEL_SCALE  # one neper of power in standardised units
    ramp_M = jnp.linspace(-1, 1, bands)
    curve_BM = uniform(2, -0.7, 0.7, (batch, 1)) * ramp_M + uniform(3, -0.7, 0.7, (batch, 1)) * jnp.cos(3 * ramp_M)
    mel_BFM = mel_BFM + nepers * (curve_BM + uniform(4, -1.4, 1.4, (batch, 1)))[:, None]
    # Stationary noise with a random slope in one row of three, mostly below the speech.
    level_B = uniform(5, -14.0, -8.0) + jnp.where(uniform(6, 0, 1) < 0.67, -99.0, 0.0)
    noise_BFM = (level_B[:, None] + 2 * uniform(7, -1, 1, (batch, 1)) * ramp_M)[:, None]
    noise_BFM = noise_BFM + jnp.log(jax.random.exponential(keys[8], mel_BFM.shape) * 0.9 + 0.1)
    noise_BFM = (noise_BFM - recogniser._MEL_CENTRE) * nepers
    mel_BFM = jnp.logaddexp(mel_BFM / nepers, noise_BFM / nepers) * nepers

    def stripe(key, size, width):
        start_B1 = jax.random.randint(key, (batch, 1), 0, size)
        width_B1 = jax.random.randint(jax.random.fold_in(key, 1), (batch, 1), 0, width + 1)
        at = jnp.arange(size)
        return (at >= start_B1) & (at < start_B1 + width_B1)

    hidden = stripe(keys[9], bands, 6)[:, None, :] | stripe(keys[10], frames, 6)[..., None]
    return jnp.where(hidden, 0.0, mel_BFM), frames_B


def _interpolate(x_BNM, at_BN):
    """Values of x at fractional places along its middle axis."""
    at_BN = jnp.clip(at_BN, 0, x_BNM.shape[1] - 1)
    low_BN = jnp.floor(at_BN).astype(jnp.int32)
    high_BN = jnp.minimum(low_BN + 1, x_BNM.shape[1] - 1)
    part_BN1 = (at_BN - low_BN)[..., None]
    take = jax.vmap(lambda x, index: x[index])
    return take(x_BNM, low_BN) * (1 - part_BN1) + take(x_BNM, high_BN) * part_BN1


def make_step(graph, optimizer, seed):
    def loss_of(params, batch, key):
        mel_BFM, frames_B = augment(batch["mel_BFM"].astype(jnp.float32), batch["frames_B"], key)
        logp_BTC, lengths_B = nnx.merge(graph, params)(mel_BFM, frames_B)
        silent_BT = jnp.arange(logp_BTC.shape[1]) >= lengths_B[:, None]
        absent_BC = batch["labels_BC"] == 0
        loss_B = optax.ctc_loss(logp_BTC, silent_BT.astype(jnp.float32), batch["labels_BC"], absent_BC * 1.0)
        return jnp.sum(loss_B) / jnp.sum(~absent_BC)

    @partial(jax.jit, donate_argnums=0)
    def train_step(state, batch, step):
        params, moments = state
        loss, gradient = jax.value_and_grad(loss_of)(params, batch, jax.random.fold_in(jax.random.key(seed), step))
        updates, moments = optimizer.update(gradient, moments, params)
        return (optax.apply_updates(params, updates), moments), loss

    return train_step


def save_checkpoint(path, state, step, settings):
    leaves = {f"{i:04d}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
    files.write_safetensors(path, leaves | {"step": np.array(step)}, {"settings": json.dumps(settings)})


def load_checkpoint(path, state, settings):
    """(state, step) to resume from; step 0 where there is no checkpoint."""
    if not path.exists():
        return state, 0
    leaves, metadata = files.read_safetensors(path)
    if (others := json.loads(metadata["settings"])) != settings:
        odd = [key for key in settings if others.get(key) != settings[key]]
        raise InputError(f"{path} is a checkpoint with another {', '.join(odd)}; remove it or choose another --data")
    step = int(leaves.pop("step"))
    return jax.tree.unflatten(jax.tree.structure(state), [jnp.asarray(leaves[name]) for name in sorted(leaves)]), step


def score(model, speech):
    """Character error rates (a fraction) of a trained model by split and level."""
    scores = {}
    for name, splits in (("held_out_sentences", ("valid", "test")), ("unseen_voices", ("unseen",))):
        for level in CORPORA:
            rows = [row for split in splits for row in speech[split] if row[0] == level]
            hypotheses = model.transcribe([waveform for _, _, waveform in rows], 16_000)
            scores[f"{name}/{level}"] = round(character_error_rate([text for _, text, _ in rows], hypotheses), 4)
    return scores


def main():
    flags = arguments()
    allocator.keep_memory()
    config = recogniser.RecogniserConfig()
    speech = load_speech(flags, config)
    train = speech.pop("train")
    waveforms = [waveform for _, _, waveform in train]
    labels = [characters(text, config.alphabet) for _, text, _ in train]
    examples = list(zip(log_mels(waveforms, config), labels))
    codec = None
    if flags.codec != "none":
        from audiolm_jax import codecs

        codec = codecs.load(flags.codec, path=flags.codec_path)
        some = list(range(0, len(waveforms), CODEC_EVERY))
        choices = [max(codec.codebooks // 4, 1), max(codec.codebooks // 2, 1), codec.codebooks]
        used = np.random.default_rng(flags.seed).choice(choices, len(some)).tolist()
        decoded = resynthesise(codec, [waveforms[i] for i in some], used, "codec")
        decoded = [recogniser.prepare(waveform, 16_000, config) for waveform in decoded]
        examples += [(mel, labels[i]) for mel, i in zip(log_mels(decoded, config), some)]
    hours = sum(len(mel) for mel, _ in examples) / 360_000
    print(f"{len(examples)} utterances, {hours:.2f} h", flush=True)

    graph, params = nnx.split(recogniser.Network(config, rngs=nnx.Rngs(flags.seed)))
    warm, flat = 1 + flags.steps // 16, flags.steps * 45 // 100  # the rate rises, stays, then falls to zero
    start_from = "random"
    if flags.init is not None:
        teacher = recogniser.load(flags.init)
        if teacher.config != config:
            raise InputError(f"{flags.init} has another architecture than this script trains")
        params, start_from = teacher.state, teacher.fingerprint
    schedule = optax.join_schedules(
        [
            optax.linear_schedule(0, flags.learning_rate, warm),
            optax.constant_schedule(flags.learning_rate),
            optax.linear_schedule(flags.learning_rate, 0, flags.steps - flat),
        ],
        [warm, flat],
    )
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=0.01))
    settings = {
        "architecture": asdict(config),
        "examples": len(examples),
        "codec": codec.fingerprint if codec else "none",
        "init": start_from,
        **{key: getattr(flags, key) for key in ("steps", "learning_rate", "seed")},
    }
    checkpoint = flags.data / "checkpoint.safetensors"
    state, start = load_checkpoint(checkpoint, (params, optimizer.init(params)), settings)
    train_step = make_step(graph, optimizer, flags.seed)
    losses = []
    with tqdm.tqdm(total=flags.steps, initial=start, unit="step", desc="train", mininterval=5) as bar:
        for step, batch in batches(examples, flags.seed, start):
            if step >= flags.steps:
                break
            state, loss = train_step(state, batch, step)
            losses.append(loss)
            bar.update()
            if (step + 1) % 20 == 0:
                value = float(np.mean(losses[-20:]))
                bar.set_postfix(loss=f"{value:.3f}")
                if not np.isfinite(value):
                    raise SystemExit(f"the loss is {value} at step {step}; the last checkpoint is {checkpoint}")
            if (step + 1) % flags.save_every == 0 or step + 1 == flags.steps:
                save_checkpoint(checkpoint, state, step + 1, settings)

    weights = {name: value.astype(np.float16) for name, value in named(nnx.merge(graph, state[0])).items()}
    model = recogniser.Recogniser(config, weights)
    scores = score(model, speech)
    if codec is not None:
        for count in sorted({max(codec.codebooks // 2, 1), codec.codebooks}):
            through = {}
            for split, rows in speech.items():
                decoded = resynthesise(codec, [row[2] for row in rows], [count] * len(rows), f"{split}, {count} books")
                through[split] = [(level, text, wave) for (level, text, _), wave in zip(rows, decoded)]
            scores |= {f"{name}/codec_{count}_codebooks": cer for name, cer in score(model, through).items()}
    print(json.dumps(scores, indent=1))
    card = {
        "cer": scores,
        "trained": {
            "corpora": {level: _content(corpus) for level, corpus in CORPORA.items()},
            "hours": round(hours, 3),
            "codec": {"name": flags.codec, "fingerprint": settings["codec"]},
            **{key: settings[key] for key in ("init", "steps", "learning_rate", "seed")},
        },
    }
    save(flags.output, config, weights, card)
    print(f"wrote {flags.output} ({flags.output.stat().st_size / 1e6:.1f} MB)")


def save(path: Path, config: recogniser.RecogniserConfig, weights: dict[str, np.ndarray], card: dict) -> None:
    """Writes what `recogniser.load` reads: float16 weights; architecture and `card` (training, scores) in the .json."""
    weights = {name: value.astype(np.float16) for name, value in weights.items()}
    text = {"config": asdict(config), "fingerprint": files.digest(asdict(config), weights), **card}
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path.with_suffix(".json")) as temporary:  # both are complete before either has its name
        temporary.write_text(json.dumps(text, indent=1) + "\n", encoding="utf-8")
        files.write_safetensors(path, weights)


def _content(corpus):
    keys = ("level", "speakers", "unseen_speakers", *corpora.SPLITS, "seed")
    return {key: value for key, value in asdict(corpus).items() if key in keys}


if __name__ == "__main__":
    main()
