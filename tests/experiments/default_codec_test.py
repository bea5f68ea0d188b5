"""The trainer of the default codec: codebooks, adversary, what stays fixed, going on, the page."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from safetensors.numpy import load_file

from audiolm_jax import codecs
from audiolm_jax.codecs.default_model import FrameConfig
from audiolm_jax.codecs.quantizer import quantize
from audiolm_jax.data import corpora
from audiolm_jax.errors import InputError

FOLDER = Path(__file__).parents[2] / "experiments" / "default_codec"
SIZES = {
    "codebooks": 3,
    "codebook_size": 16,
    "latent": 8,
    "mels": 8,
    "encoder_half_width": 12,
    "width": 16,
    "decoder_half_width": 12,
}


@pytest.fixture(scope="module")
def parts():
    """The modules of the experiment by name."""
    names = ("adversary", "codebooks", "page", "train")
    return {name: importlib.import_module(f"experiments.default_codec.{name}") for name in names}


def latents(rows=4, frames=40, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, frames, 8)).astype(np.float32)


def books(count=3, size=16, seed=1):
    return np.random.default_rng(seed).normal(size=(count, size, 8)).astype(np.float32)


def begun(parts, way):
    """Codebooks whose running means agree with them, all codes equally used."""
    return parts["codebooks"].state_of(way, jnp.asarray(books()))


PREFIX = np.array([3, 3, 1, 2], np.int32)


def test_running_means_are_those_of_a_loop(parts):
    state, decay = begun(parts, "means"), 0.9
    _, _, found = parts["codebooks"].quantized(jnp.asarray(latents()), state["books"], PREFIX)
    moved = parts["codebooks"].follow(state, found, decay, jax.random.key(0))
    codes_BTQ, _, given_QBTZ = (np.asarray(x) for x in quantize(latents(), books()))
    for level in range(3):
        used = [row for row in range(4) if PREFIX[row] > level]
        cells = [(codes_BTQ[b, t, level], given_QBTZ[level, b, t]) for b in used for t in range(40)]
        for code in range(16):
            mine = [given for c, given in cells if c == code]
            share = decay / 16 + (1 - decay) * len(mine) / len(cells)
            total = decay * books()[level, code] / 16 + (1 - decay) * np.sum(mine, axis=0) / len(cells)
            np.testing.assert_allclose(moved["share"][level, code], share, rtol=1e-5)
            np.testing.assert_allclose(moved["books"][level, code], total / share, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("way", ["means", "gradient"])
def test_a_dead_code_becomes_something_that_the_codebook_was_given(parts, way):
    state = begun(parts, way)
    state["share"] = state["share"].at[1, 5].set(1e-6)
    state["books"] = state["books"].at[1, 5].set(1e6)  # nothing is ever near it
    _, _, found = parts["codebooks"].quantized(jnp.asarray(latents()), state["books"], PREFIX)
    moved = parts["codebooks"].follow(state, found, 0.99, jax.random.key(0))
    given_QBTZ = found[1]
    distance = np.abs(np.asarray(given_QBTZ[1]) - np.asarray(moved["books"][1, 5])).max(-1).min()
    assert distance == 0 and moved["share"][1, 5] == pytest.approx(0.5 / 16)
    alive = np.asarray(moved["share"]) > 0.06 / 16
    assert alive.all()


def test_codebooks_that_learn_by_gradient_move_towards_what_they_are_given(parts):
    def loss(books_QKZ, x):
        return parts["codebooks"].quantized(x, books_QKZ, PREFIX)[1]["books"]

    start = jnp.asarray(books())
    gradient = jax.grad(loss)(start, jnp.asarray(latents()))
    assert float(loss(start - 0.5 * gradient, latents())) < float(loss(start, latents()))
    # A codebook that no row is decoded from learns nothing, and nothing of it reaches the latents.
    first = jax.grad(lambda b: parts["codebooks"].quantized(jnp.asarray(latents()), b, 1 + 0 * PREFIX)[1]["books"])(
        start
    )
    assert float(jnp.abs(first[0]).max()) > 0 and not np.asarray(first[1:]).any()
    assert not np.asarray(jax.grad(lambda x: loss(start, x) * 1.0)(jnp.asarray(latents()))).any()


def test_rows_are_decoded_from_their_own_number_of_codebooks(parts):
    value, _, _ = parts["codebooks"].quantized(jnp.asarray(latents()), jnp.asarray(books()), PREFIX)
    _, rows_QBTZ, _ = quantize(latents(), books())
    for row, count in enumerate(PREFIX):
        np.testing.assert_allclose(value[row], np.asarray(rows_QBTZ[:count, row]).sum(0), rtol=1e-4, atol=1e-5)
    counts = parts["codebooks"].prefixes(np.random.default_rng(0), 4000, 16, 0.5)
    assert (counts[:2000] == 16).all() and set(counts[2000:]) == set(parts["codebooks"].PREFIXES)


def test_kmeans_leaves_less_with_every_codebook(parts):
    data = latents(40, 50).reshape(-1, 8)
    state = parts["codebooks"].kmeans("means", data, 3, 16, 0)
    _, rows_QNZ, _ = quantize(data[None], state["books"])
    left = [float(((data - np.asarray(rows_QNZ[:q, 0]).sum(0)) ** 2).mean()) for q in range(4)]
    assert left == sorted(left, reverse=True) and left[1] < 0.8 * left[0]


def tones(rows=4, samples=2000):
    """Real: harmonic sounds. Fake: the same with their phases lost."""
    rng, time = np.random.default_rng(0), np.arange(samples) / 16000
    pitch = rng.uniform(100, 300, (rows, 1, 1)) * np.arange(1, 8)[:, None]
    real = np.sin(2 * np.pi * pitch * time).sum(1) / 7
    return real.astype(np.float32), rng.normal(0, real.std(), real.shape).astype(np.float32)


def test_the_adversary_learns_to_tell_and_pulls_the_codec_to_what_is_real(parts):
    adversary = parts["adversary"]
    graph, params = nnx.split(adversary.Adversary(adversary.AdversaryConfig((128, 256), width=4), nnx.Rngs(0)))
    real, fake = tones()
    step = jax.jit(jax.value_and_grad(lambda p: adversary.discriminator_loss(nnx.merge(graph, p), real, fake)))
    transform, losses = optax.adam(1e-2), []
    moments = transform.init(params)
    for _ in range(30):
        loss, gradient = step(params)
        losses.append(float(loss))
        updates, moments = transform.update(gradient, moments)
        params = optax.apply_updates(params, updates)
    assert losses[0] == pytest.approx(2, abs=0.5) and losses[-1] < 0.7 * losses[0]
    judge = nnx.merge(graph, params)
    of_real, of_fake = (jax.jit(adversary.generator_losses)(judge, real, x) for x in (real, fake))
    assert float(of_real[0]) < float(of_fake[0]) and float(of_real[1]) == 0 < float(of_fake[1])


def settings(parts, **changes):
    return parts["train"].Settings(config=FrameConfig(**SIZES), batch=4, frames=12, **changes)


def speech(parts, rows=4, seed=0):
    audio = np.random.default_rng(seed).normal(0, 0.1, (rows, 12 * 640)).astype(np.float32)
    return audio, np.full(rows, 3, np.int32)


@pytest.mark.slow
@pytest.mark.parametrize("books", ["means", "gradient"])
def test_a_step_moves_everything_that_learns(parts, books):
    train = parts["train"]
    networks = train.Networks(settings(parts, books=books, adversary=0.1, adversary_every=2))
    state = train.init(networks, None) | {"codebooks": begun(parts, books)}
    before = jax.device_get(state)
    after, terms = train.train_step(networks, state, *speech(parts), 1e-2, 0.9, True, jax.random.key(0))
    for name in ("params", "judge", "codebooks"):
        pairs = zip(jax.tree.leaves(before[name]), jax.tree.leaves(after[name]), strict=True)
        moved = [not np.array_equal(a, b) for a, b in pairs]
        assert sum(moved) > 0.9 * len(moved) - 1, name
    assert {"hinge", "matching", "adversary", "commit", "total"} <= set(terms)
    assert all(np.isfinite(float(value)) for value in terms.values())


@pytest.mark.slow
def test_a_decoder_trained_alone_leaves_every_code_as_it_is(parts, tmp_path):
    train = parts["train"]
    networks = train.Networks(settings(parts, only="decoder"))
    state = train.init(networks, None) | {"codebooks": begun(parts, "means")}
    before = jax.device_get(state)
    for step in range(2):
        state, _ = train.train_step(networks, state, *speech(parts), 1e-2, 0.9, False, jax.random.key(step))
    for part, stays in (("encoder", True), ("decoder", False)):
        same = jax.tree.map(np.array_equal, before["params"][part], jax.device_get(state["params"][part]))
        assert all(jax.tree.leaves(same)) == stays, part
    assert np.array_equal(before["codebooks"]["books"], state["codebooks"]["books"])


def test_settings_that_do_not_exist_are_one_sentence(parts):
    with pytest.raises(InputError, match="--books=mean: it must be one of 'means', 'gradient'"):
        settings(parts, books="mean")
    with pytest.raises(InputError, match="--only=encoder"):
        settings(parts, only="encoder")


def test_a_checkpoint_comes_back_whole_and_only_to_its_own_run(parts, tmp_path):
    train, path = parts["train"], tmp_path / "checkpoint.safetensors"
    networks = train.Networks(settings(parts, adversary=0.1))
    state = train.init(networks, None) | {"codebooks": begun(parts, "means")}
    train.save_checkpoint(path, state, {"step": 7, "settings": {"batch": 4, "rate": 0.1}})
    back, progress = train.load_checkpoint(path, train.init(networks, None), {"batch": 4, "rate": 0.1})
    assert progress["step"] == 7
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, jax.device_get(state), jax.device_get(back))))
    with pytest.raises(InputError, match=r"other settings \(rate\)"):
        train.load_checkpoint(path, state, {"batch": 4, "rate": 0.2})


@pytest.fixture(scope="module")
def heard(tmp_path_factory):
    """A small corpus where the trainer looks for its own."""
    root = tmp_path_factory.mktemp("heard")
    for level in ("templates", "digits"):
        config = corpora.CorpusConfig(level=level, speakers=2, train=6, valid=2, test=2, unseen=0, workers=1)
        corpora.utterances(config, root / level, progress=False)
    return root


def run(heard, workdir, *arguments, interrupt=0):
    """The trainer as a person starts it; interrupted by SIGINT once `interrupt` lines of its log are written."""
    sizes = [f"--config.{name.replace('_', '-')}={value}" for name, value in SIZES.items()]
    common = ["--batch=4", "--frames=12", "--steps=24", "--plain=0.25", "--checkpoint-minutes=0", "--adversary=0.1"]
    command = [sys.executable, str(FOLDER / "train.py"), f"--workdir={workdir}", f"--corpus={heard}"]
    environment = {**os.environ, "PYTHONPATH": str(FOLDER.parent.parent), "JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen(
        [*command, *sizes, *common, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    while interrupt and process.poll() is None:
        if (log := workdir / "log.jsonl").exists() and len(log.read_text().splitlines()) >= interrupt:
            process.send_signal(signal.SIGINT)
            interrupt = 0
        time.sleep(0.02)
    _, said = process.communicate()
    return process.returncode, said.decode()


@pytest.mark.slow
def test_a_run_that_was_interrupted_ends_like_one_that_was_not(heard, tmp_path):
    assert run(heard, tmp_path / "whole")[0] == 0
    code, said = run(heard, tmp_path / "halves", interrupt=9)
    assert code == 130, said
    lines = [json.loads(line) for line in (tmp_path / "halves" / "log.jsonl").read_text().splitlines()]
    assert 9 <= lines[-1]["step"] < 24
    code, said = run(heard, tmp_path / "halves", "--rate=0.5")
    assert code == 2 and "other settings (rate)" in said.splitlines()[-1]
    assert run(heard, tmp_path / "halves")[0] == 0
    for name in ("checkpoint.safetensors", "default.safetensors"):
        whole, halves = (load_file(tmp_path / folder / name) for folder in ("whole", "halves"))
        assert all(np.array_equal(whole[key], halves[key]) for key in whole), name


@pytest.mark.slow
def test_the_page_has_scores_usage_curves_and_clips(heard, tmp_path):
    pytest.importorskip("pesq")
    code, said = run(heard, tmp_path / "run")
    assert code == 0, said
    command = [sys.executable, str(FOLDER / "evaluate.py"), f"--corpus={heard}", f"--out={tmp_path / 'page'}"]
    command += [f"--weights={tmp_path / 'run' / 'default.safetensors'}", "--splits", "test", "--codebooks", "1", "3"]
    environment = {**os.environ, "PYTHONPATH": str(FOLDER.parent.parent), "JAX_PLATFORMS": "cpu"}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    results = json.loads((tmp_path / "page" / "results.json").read_text())
    page = (tmp_path / "page" / "report.html").read_text()
    assert set(results["test"]["scores"]) == {"1", "3"} and len(results["test"]["usage"]) == 3
    for name in ("scores", "curves", "usage", "training", "listen"):
        assert f'<section id="{name}">' in page, name
    assert page.count("<audio") == 2 * 3
    assert results["fingerprint"] == codecs.load("default", tmp_path / "run" / "default.safetensors").fingerprint
