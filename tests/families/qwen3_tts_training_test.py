"""What a training row of Qwen3-TTS must be like, and four mistakes of the published fine-tuning script, each made here
on purpose and each failing one of the checks (docs/qwen3_tts_finetuning.md)."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from flax import nnx
from flax.traverse_util import flatten_dict

from audiolm_jax import config as configs
from audiolm_jax import runs
from audiolm_jax.cli import main
from audiolm_jax.data import batches, tokens
from audiolm_jax.errors import InputError
from audiolm_jax.evaluation import evaluate
from audiolm_jax.evaluation.config import EvaluationConfig
from audiolm_jax.families import finetune, published
from audiolm_jax.model import checkpoints, losses, sharding
from audiolm_jax.model.config import PRESETS
from audiolm_jax.serialization.documents import causal_row
from audiolm_jax.serialization.vocab import END_AUDIO, PAD, TEXT_START
from audiolm_jax.training import step as training
from audiolm_jax.training.config import OptimizerConfig, TrainingConfig
from tests.helpers import published_codecs
from tests.helpers import published_qwen3_tts as small

T, Q = 9, small.CODEBOOKS


@pytest.fixture(scope="module", autouse=True)
def mesh():
    with jax.set_mesh(sharding.single_device_mesh()):
        yield


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("qwen3_tts")
    small.write(path, num_hidden_layers=1, text_width=20)  # as wide as the talker: the mistake about text needs it
    return published.read(path)


@pytest.fixture(scope="module")
def batch(checkpoint):
    """One row: text beside nine frames, which it ends before."""
    codes_TQ = np.random.default_rng(0).integers(0, small.CODES, (T, Q))
    document = checkpoint.prompts.document("who is there", language="english", speaker="ryan", text_first=False)
    row = causal_row((*document, ("audio", codes_TQ)), checkpoint.spec.grid, checkpoint.spec.vocab)
    names = {"tokens": "BLS", "targets": "BLS", "heads": "BLS", "weights": "BLS", "positions": "BL", "ahead": "BL"}
    arrays = {f"{name}_{axes}": row[name][None] for name, axes in names.items()}
    return arrays | {"segments_BL": np.ones_like(arrays["positions_BL"])}


def log_probabilities(model, batch, vocab, state_of=lambda hidden_BLD: hidden_BLD):
    """Of every prediction, [1, L, Q]. state_of: what the code predictor is given of the talker's states."""
    hidden_BLD = model(batch["tokens_BLS"], batch["positions_BL"], batch["segments_BL"])
    first, others = (
        losses.scored(model, x, batch, vocab, jax.random.key(0), 1.0) for x in (hidden_BLD, state_of(hidden_BLD))
    )
    return jnp.concatenate([first[0].logprob_BLS, others[1].logprob_BLS], axis=-1)


@dataclasses.dataclass(frozen=True)
class Script:
    """How a script trains. labels: what it asks for. score: the log-probabilities of these."""

    labels: Callable[[dict], dict] = dict
    score: Callable[..., Any] = log_probabilities


def shifted_twice(batch):
    """The labels are moved by one position before a loss that moves them once more."""
    names = ("targets_BLS", "heads_BLS", "weights_BLS")
    return batch | {name: np.pad(batch[name][:, 1:], ((0, 0), (0, 1), (0, 0))) for name in names}


def state_of_its_own_frame(model, batch, vocab):
    """The code predictor continues the state at the frame whose codes it predicts."""
    return log_probabilities(model, batch, vocab, lambda hidden_BLD: jnp.roll(hidden_BLD, -1, axis=1))


def last_book_left_out(batch):
    """The labels of the code predictor are moved by one book before a loss that moves them once more: the output matrix
    of a book learns the next one, and that of the last learns nothing."""
    targets, heads, weights = (batch[f"{name}_BLS"].copy() for name in ("targets", "heads", "weights"))
    offset = small.CODES * (targets[..., 2:] > 0)
    targets[..., 1:-1] = targets[..., 2:] - offset
    targets[..., -1] = heads[..., -1] = weights[..., -1] = 0
    return batch | {"targets_BLS": targets, "heads_BLS": heads, "weights_BLS": weights}


def text_unprojected(model, batch, vocab):
    """The rows of the table of text are added as they are."""
    table = model.text.embedding_VW
    plain = nnx.clone(model)
    plain.text = lambda text: jnp.where((text > 0)[..., None], table[...][text - TEXT_START], 0)
    return log_probabilities(plain, batch, vocab)


def every_label_is_the_input_that_follows(script, checkpoint, batch):
    asked = script.labels(batch)
    targets, heads, tokens = (asked[f"{name}_BLS"][0] for name in ("targets", "heads", "tokens"))
    for stream in range(Q):
        [at] = np.nonzero(heads[:, stream])
        np.testing.assert_array_equal(targets[at, stream], tokens[at + 1, stream])


def no_prediction_sees_its_own_frame(script, checkpoint, batch):
    """Other codes as the input of a position leave every prediction before it as it was, bit for bit."""
    vocab = checkpoint.spec.vocab
    score = jax.jit(lambda model, tokens_BLS: script.score(model, {**asked, "tokens_BLS": tokens_BLS}, vocab))
    asked = {name: jnp.asarray(x) for name, x in script.labels(batch).items()}
    before = np.asarray(score(checkpoint.model, asked["tokens_BLS"]))[0]
    opened = np.flatnonzero(batch["heads_BLS"][0, :, 1])[0] + 1
    for at in (opened, opened + 4, opened + T - 1):
        tokens_BLS = batch["tokens_BLS"].copy()
        first = checkpoint.spec.vocab.code_offsets
        tokens_BLS[0, at, :Q] = first + (tokens_BLS[0, at, :Q] - first + 7) % small.CODES
        after = np.asarray(score(checkpoint.model, jnp.asarray(tokens_BLS)))[0]
        np.testing.assert_array_equal(after[:at], before[:at])
        assert (after[at] != before[at]).any()


def every_code_is_trained_once(script, checkpoint, batch):
    asked = script.labels(batch)
    trained = (asked["weights_BLS"][0] > 0) & (asked["heads_BLS"][0] > 0)
    assert trained.sum(axis=0).tolist() == [T + 1] + [T] * (Q - 1)  # and the end
    assert (asked["targets_BLS"][0, :, 0] == END_AUDIO).sum() == 1


def every_weight_of_the_text_is_trained(script, checkpoint, batch):
    graph, params = nnx.split(checkpoint.model)
    asked = {name: jnp.asarray(x) for name, x in script.labels(batch).items()}

    @jax.jit
    @jax.grad
    def gradient(params):
        return -script.score(nnx.merge(graph, params), asked, checkpoint.spec.vocab).sum()

    found = nnx.to_pure_dict(gradient(params))
    for name in ("embedding_VW", "up_WF", "up_bias_F", "down_FD", "down_bias_D"):
        assert jnp.abs(found["text"][name]).max() > 0, name
    used = np.unique(batch["tokens_BLS"][..., -1])
    moved = np.flatnonzero(np.abs(found["text"]["embedding_VW"]).max(-1)) + TEXT_START
    assert set(moved) <= set(used) - {PAD}


CHECKS = (
    every_label_is_the_input_that_follows,
    no_prediction_sees_its_own_frame,
    every_code_is_trained_once,
    every_weight_of_the_text_is_trained,
)
MISTAKES = {
    "labels shifted twice": (Script(labels=shifted_twice), every_label_is_the_input_that_follows),
    "a state that saw its own frame": (Script(score=state_of_its_own_frame), no_prediction_sees_its_own_frame),
    "the last book never trained": (Script(labels=last_book_left_out), every_code_is_trained_once),
    "no projection of the text": (Script(score=text_unprojected), every_weight_of_the_text_is_trained),
}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_training_row_is_right(check, checkpoint, batch):
    check(Script(), checkpoint, batch)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_fails_its_check(mistake, checkpoint, batch):
    script, check = MISTAKES[mistake]
    with pytest.raises(AssertionError):
        check(script, checkpoint, batch)


def test_training_lowers_the_loss_of_every_book_and_of_the_end(checkpoint, batch):
    """By the step of `audiolm train`, from the weights of the checkpoint."""
    spec = checkpoint.spec
    program = training.program(
        spec.model, spec.vocab, PRESETS["data"], OptimizerConfig(learning_rate=3e-3, warmup=0), TrainingConfig(steps=20)
    )
    state = training.init_state(program, jax.random.key(0))
    params = checkpoints.params_of(checkpoint.model)
    state = dataclasses.replace(state, params=jax.tree.map(jnp.copy, params))
    step, arrays = training.jitted(program), {name: jnp.asarray(x)[None] for name, x in batch.items()}
    nll = []
    for _ in range(12):
        fresh = dataclasses.replace(state, sums=jax.tree.map(jnp.zeros_like, state.sums))
        state, metrics = step(fresh, arrays, {})
        nll.append(np.asarray(metrics["sums"]["nll_X"]))
    names = losses.class_names(spec.vocab)
    falls = {name: last < 0.9 * first for name, first, last in zip(names, nll[0], nll[-1], strict=True) if first}
    assert falls == dict.fromkeys([*(f"codebook_{q}" for q in range(Q)), "end"], True), (nll[0], nll[-1])
    moved = nnx.to_pure_dict(nnx.state(checkpoint.model))["text"]["up_WF"] != state.params["text"]["up_WF"]
    assert moved.all()


def test_the_likelihood_is_that_of_the_row(checkpoint, batch):
    """Text beside the audio costs nothing; every code and the end are counted once."""
    codes_TQ = np.random.default_rng(0).integers(0, small.CODES, (T, Q)).astype(np.int32)
    example = {"text": "who is there", "speaker": "ryan", "codes": codes_TQ}
    found = evaluate.scored(
        checkpoint.model,
        checkpoint.spec,
        [example],
        checkpoint.codec.frame_rate,
        EvaluationConfig(),
        checkpoint.text,
        prompts=checkpoint.prompts,
    )
    row = causal_row(checkpoint.prompts.example(*example.values()), checkpoint.spec.grid, checkpoint.spec.vocab)
    own = {name: row[name.partition("_")[0]][None] if name != "segments_BL" else None for name in batch}
    own["segments_BL"] = np.ones_like(own["positions_BL"])
    log_BLQ = jax.jit(lambda model, own: log_probabilities(model, own, checkpoint.spec.vocab))(checkpoint.model, own)
    np.testing.assert_allclose(
        found.code_bits_UQ.sum() + found.end_bits_U.sum(), -np.asarray(log_BLQ).sum() / np.log(2), rtol=1e-5
    )


SAID = {"a": "who is there", "b": "good morning", "c": "three one four two five"}
OPTIONS = [
    *("data.sequence_length=96", "data.batch_size=8", "training.log_every=1", "training.checkpoint_every=3"),
    *("optimizer.learning_rate=1e-2", "optimizer.warmup=0", "optimizer.schedule=constant", "model.remat=False"),
    *("training.codebook_weights=3,1,1", "training.steps=3", "lora.matrices=attention,ffn", "lora.rank=2"),
]


@pytest.fixture(scope="module")
def root(checkpoint, tmp_path_factory):
    """base (imported) and data (prepared), through the command line."""
    root = tmp_path_factory.mktemp("tuned")
    (root / "recordings").mkdir()
    for number, (name, words) in enumerate(SAID.items()):
        audio = published_codecs.sound(number, 20 * checkpoint.codec.hop)
        soundfile.write(root / "recordings" / f"{name}.wav", audio, checkpoint.codec.sample_rate)
        (root / "recordings" / f"{name}.txt").write_text(words)
    assert main.main(["import", str(checkpoint.others), str(root / "base")]) == 0
    corpus = [f"--config.corpus.path={root / 'recordings'}", "--config.corpus.min_seconds=0.1"]
    corpus += ["--config.corpus.valid_fraction=0", "--config.corpus.test_fraction=0"]
    start = ["--config", "finetune_qwen3_tts", f"--config.finetune.base={root / 'base'}"]
    assert main.main(["prepare", "--data", str(root / "data"), *start, *corpus]) == 0
    return root


def train(root, workdir, *overrides):
    config = configs.load("finetune_qwen3_tts", [f"finetune.base={root / 'base'}", *OPTIONS, *overrides])
    runs.train(config, root / "data", workdir, progress=False)
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("rank", [2, 0])
def test_fine_tuning_learns_and_goes_back(root, tmp_path, rank):
    lines = train(root, tmp_path / "run", f"lora.rank={rank}")
    assert lines[-1]["loss"] < lines[0]["loss"]
    before, after = (
        flatten_dict(checkpoints.params_of(checkpoints.restore_params(run)[0]))
        for run in (root / "base", tmp_path / "run")
    )
    changed = {"/".join(path) for path, x in before.items() if not np.array_equal(x, after[path])}
    matrices = {f"{part}layers/{x}" for part in ("", "depth/") for x in ("qkv_DHAK", "out_HGKD", "up_DCF", "down_FD")}
    assert changed == (matrices if rank else {"/".join(path) for path in before})
    assert main.main(["export", "--workdir", str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 0
    run, out = (
        published.read(tmp_path / "out"),
        published.of_run(tmp_path / "run", *checkpoints.restore_params(tmp_path / "run")),
    )
    for ours, theirs in zip(*(jax.tree.leaves(checkpoints.params_of(one.model)) for one in (run, out)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_batch_holds_the_rows_of_the_recordings(root):
    config = finetune.configured(configs.load("finetune_qwen3_tts", [f"finetune.base={root / 'base'}", *OPTIONS]))
    base = finetune.open_base(config)
    grid, section = base.spec.grid, configs.section(config, "data")
    source = tokens.open_split(root / "data" / "tokens", "train", base.spec.codec.fingerprint, base.text)
    view = base.view(source, section, grid, 0)
    batch = next(batches.training_batches(source, section, grid, base.vocab, 0, view=view))
    assert batch["tokens_BLS"].shape[-1] == batch["targets_BLS"].shape[-1] + 1 == Q + 1
    examples = [source[index] for index in range(len(source))]
    assert {example["text"] for example in examples} == set(SAID.values())
    rows = [
        causal_row(
            (*base.prompts.document(one["text"], text_first=True), ("audio", one["codes"].astype(np.int32))),
            grid,
            base.vocab,
        )
        for one in examples
    ]
    for name in ("tokens", "targets", "heads"):
        segments, values = batch["segments_BL"], batch[f"{name}_BLS"]
        found = {values[b][segments[b] == n].tobytes() for b in range(8) for n in range(1, segments[b].max() + 1)}
        assert found and found <= {row[name].tobytes() for row in rows}


def test_recordings_that_cannot_be_trained_on_are_named(root, tmp_path):
    for change, said in (
        ("data.sequence_length=30", r"takes \d+ positions with its prompt, of which 20 are frames"),
        ("lora.rank=21", r"lora\.rank=21 must be at most"),
        ("training.codebook_weights=1,2", "must have 3 numbers"),
    ):
        with pytest.raises(InputError, match=said):
            train(root, tmp_path / "run", change)
