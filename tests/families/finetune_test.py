"""Fine-tuning an imported MusicGen: against `transformers` where it is installed, LoRA, resuming, files, bad input."""

import dataclasses
import functools
import json
import re
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import optax
import pytest
import soundfile
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import audiolm_jax
from audiolm_jax import codecs, runs, serialization
from audiolm_jax import config as configs
from audiolm_jax.cli import main
from audiolm_jax.codecs.stereo import Stereo
from audiolm_jax.data import batches as data
from audiolm_jax.data import corpora, tokens
from audiolm_jax.data import encode as encoding
from audiolm_jax.errors import InputError
from audiolm_jax.families import finetune, musicgen, published
from audiolm_jax.model import checkpoints, lora, sharding
from audiolm_jax.sampling import SamplingConfig, requests
from audiolm_jax.serialization import documents
from audiolm_jax.serialization.vocab import HEAD_CODE
from audiolm_jax.training.config import OptimizerConfig, TrainingConfig
from audiolm_jax.training.step import init_state, program, train_step
from experiments.colab import random_musicgen
from tests.helpers.published_musicgen import reopened

TEXTS = {"a": "rock", "b": "slow jazz with a loud piano", "c": "quiet drums", "d": "fast rock"}
SECONDS = {"a": 0.4, "b": 0.5, "c": 0.3, "d": 2.0}  # the last one is longer than a row
FRAMES = 52  # of a row
DECODER = {"hidden_size": 32, "ffn_dim": 32, "num_hidden_layers": 2}  # which eight devices can share
SMALL = [
    f"data.sequence_length={FRAMES + 4}",
    *("data.batch_size=8", "training.log_every=1", "training.checkpoint_every=2", "lora.rank=4"),
    *("optimizer.learning_rate=1e-2", "optimizer.warmup=0", "optimizer.schedule=constant", "model.remat=False"),
    *("training.steps=5", "lora.matrices=cross,ffn", "training.peak_tflops=1"),  # a peak that need not be measured
]
EMA = ("training.ema=0.5", "data.lanes=2", "training.accumulate=2", "data.batch_size=16")


def recordings(folder, texts=TEXTS):
    """Tones with the text of each beside it, at the rate of the codec."""
    folder.mkdir()
    for number, name in enumerate(SECONDS):
        time = np.arange(int(600 * SECONDS[name])) / 600
        soundfile.write(folder / f"{name}.wav", 0.4 * np.sin(2 * np.pi * (30 + 20 * number) * time), 600)
        if texts:
            (folder / f"{name}.txt").write_text(texts[name])
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """published, base (imported), recordings and data (prepared), all through the command line."""
    root = tmp_path_factory.mktemp("music")
    random_musicgen.write(root / "published", **DECODER)
    assert main.main(["import", str(root / "published"), str(root / "base")]) == 0
    corpus = [f"--config.corpus.path={recordings(root / 'recordings')}", "--config.corpus.min_seconds=0.1"]
    split = ["--config.corpus.valid_fraction=0", "--config.corpus.test_fraction=0"]
    start = ["--config", "finetune_musicgen", f"--config.finetune.base={root / 'base'}"]
    assert main.main(["prepare", "--data", str(root / "data"), *start, *corpus, *split]) == 0
    return root


@pytest.fixture(scope="module")
def tuned(root):
    """(workdir, metrics) of a run with LoRA."""
    return root / "tuned", train(root, root / "tuned")


def configured(root, *overrides):
    return configs.load("finetune_musicgen", [f"finetune.base={root / 'base'}", *SMALL, *overrides])


def train(root, workdir, *overrides):
    """One line of metrics for every step."""
    runs.train(configured(root, *overrides), root / "data", workdir, progress=False)
    timed = ("seconds", "steps_per_second", "audio_seconds_per_second", "mfu")
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in timed} for line in lines]


def opened(root, *overrides):
    """(base, batches, configuration) as training has them."""
    config = finetune.configured(configured(root, *overrides))
    base = finetune.open_base(config)
    source = tokens.open_split(root / "data" / "tokens", "train", base.spec.codec.fingerprint)
    section, order = (configs.section(config, name) for name in ("data", "serialization"))
    grid = serialization.bind(order, 4, "bare")
    view = base.view(source, section, grid, 0)
    return base, data.training_batches(source, section, grid, base.vocab, 0, view=view), config


def saved(workdir, step=None):
    return checkpoints.params_of(checkpoints.restore_params(workdir, step)[0])


def layout(x):
    return x.shape, x.dtype, axes(x)


def axes(x):
    spec = () if x.sharding is None else x.sharding.spec
    return (*spec, *(None,) * len(x.shape))[: len(x.shape)]


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def gradient(base, batch, config):
    """(loss, gradient) of a training step."""
    model, rules = configs.section(config, "model"), sharding.PRESETS["data"]
    settings = TrainingConfig(steps=1)
    keep = optax.GradientTransformation(lambda p: p, lambda g, s, p: (jax.tree.map(jax.numpy.zeros_like, g), g))
    parts = dataclasses.replace(program(model, base.vocab, rules, OptimizerConfig(), settings, base), tx=keep)
    weights, frozen = base.load(model, rules, resumed=False)
    batch = {name: x[None] for name, x in batch.items() if np.ndim(x)}
    state = init_state(parts, jax.random.key(0), weights)
    state, metrics = jax.jit(functools.partial(train_step, program=parts))(state, batch, frozen)
    return float(metrics["loss"]), state.opt_state, parts.graph


def labels_of(batch, vocab):
    """What the reference calls labels, [B, steps, Q]: codes where they stand in the delay pattern, -100 elsewhere."""
    codes = batch["targets_BLS"] - vocab.code_offsets
    return np.where(batch["heads_BLS"] >= HEAD_CODE, codes, -100)[:, :-1]


def reference_loss(model, batch, vocab):
    """The loss of the model of `transformers` on a batch."""
    import torch

    model.config.decoder.decoder_start_token_id = vocab.codebook_size
    given = {"input_ids": batch["text_BE"], "attention_mask": batch["text_valid_BE"], "labels": labels_of(batch, vocab)}
    return model(**{name: torch.tensor(x, dtype=torch.long) for name, x in given.items()}).loss


def test_a_batch_is_what_the_tokens_say(root):
    base, batches, _ = opened(root, "data.drop_text=0.3")
    source = tokens.open_split(root / "data" / "tokens", "train")
    known = {example["text"]: example["codes"] for example in map(source.__getitem__, range(len(source)))}
    special_Q = base.vocab.extra_start + np.arange(4)
    seen, starts = set(), set()
    for _ in range(6):
        batch = next(batches)
        assert batch["tokens_BLS"].shape == (8, FRAMES + 4, 4) and batch["text_BE"].shape == (8, 16)
        labels_BLQ = labels_of(batch, base.vocab)
        frames = 0
        for b in range(8):
            valid, ids = batch["text_valid_BE"][b], batch["text_BE"][b]
            [text] = [t for t in [*known, ""] if base.token_ids(t) == ids[valid].tolist()]
            seen.add(text)
            count = int((labels_BLQ[b, :, 0] >= 0).sum())
            frames += count
            codes_TQ = np.stack([labels_BLQ[b, q : q + count, q] for q in range(4)], axis=1)
            assert (labels_BLQ[b] >= 0).sum() == 4 * count  # and nothing else is predicted
            row = batch["tokens_BLS"][b]
            assert (row[0] == special_Q).all() and (batch["segments_BL"][b] > 0).sum() == 1 + count + 3
            for q in range(4):
                before, after = row[: 1 + q, q], row[1 + q + count : 1 + count + 3, q]
                assert (before == special_Q[q]).all() and (after == special_Q[q]).all()
                np.testing.assert_array_equal(
                    row[1 + q : 1 + q + count, q] - base.vocab.code_offsets[q], codes_TQ[:, q]
                )
            if text:
                whole = known[text]
                found = [t for t in range(len(whole) - count + 1) if (whole[t : t + count] == codes_TQ).all()]
                assert found and count == min(len(whole), FRAMES)
                starts |= set(found) if text == "fast rock" else set()
        assert batch["frames"] == frames
        assert set(np.unique(batch["weights_BLS"])) == {0.0, 1.0}
    assert seen == {*known, ""} and len(starts) > 3


def test_loss_and_gradient_equal_the_reference(root):
    pytest.importorskip("torch", reason="the reference needs torch: pip install 'audiolm-jax[parity]'")
    model = reopened(root / "published")
    base, batches, config = opened(root, "lora.rank=0", "data.drop_text=0.3")
    batch = next(batches)
    assert not batch["text_valid_BE"].any(axis=1).all() and batch["text_valid_BE"].any()  # some without text
    loss, gradients, graph = gradient(base, batch, config)
    expected = reference_loss(model, batch, base.vocab)
    expected.backward()
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)
    ours = musicgen.tensors_of(nnx.merge(graph, gradients), base.vocab)
    expected = {name: p.grad.numpy() for name, p in model.named_parameters() if name in ours}
    assert expected.keys() == ours.keys()
    for name, tensor in ours.items():
        np.testing.assert_allclose(
            tensor, expected[name], atol=1e-5 * np.abs(expected[name]).max(), rtol=1e-5, err_msg=name
        )


def test_training_and_sampling_agree(root):
    """What generation chooses greedily is the likeliest code in a training row of it; with text and without."""
    base, *_ = opened(root, "lora.rank=0")
    generator = audiolm_jax.load(root / "base")
    greedy = SamplingConfig(temperature=(0.0,))
    model, vocab, rules = checkpoints.restore_params(root / "base")[0], base.vocab, sharding.PRESETS["data"]
    whole = jax.jit(lambda model, tokens, at, encoded: model.logits(model(tokens, at, at * 0 + 1, encoded=encoded)))
    encode = jax.jit(lambda frozen, rows: base.encoded(frozen, rows, rules))
    for text in ("rock", ""):
        codes_TQ = generator.generate(text, frames=20, sampling=greedy).codes_TQ
        row = documents.causal_row((("audio", codes_TQ),), generator.grid, vocab)
        ids = base.token_ids(text)
        rows = {"text_BE": np.zeros((1, 16), np.int32), "text_valid_BE": np.arange(16)[None] < len(ids)}
        rows["text_BE"][0, : len(ids)] = ids
        encoded = encode(base.load(base.spec.model, rules, resumed=True)[1], rows)
        [request] = generator.requests([text], frames=20)
        states, valid = requests.encoded([request], 12, False)
        np.testing.assert_allclose(encoded[0], states, atol=1e-6)
        np.testing.assert_array_equal(encoded[1], valid)
        logits = np.asarray(whole(model, row["tokens"][None], row["positions"][None], encoded))[0]
        for q in range(4):
            first = vocab.code_offsets[q]
            made = logits[q : q + 17, first : first + vocab.codebook_size].argmax(axis=-1)  # before the end is in sight
            np.testing.assert_array_equal(made, codes_TQ[:17, q])


@pytest.mark.parametrize(
    "changes",
    [(), pytest.param(("lora.rank=0",), marks=pytest.mark.slow), pytest.param(EMA, marks=pytest.mark.slow)],
)
def test_killed_and_resumed_equals_never_stopped(root, tuned, tmp_path, monkeypatch, changes):
    straight = tuned if not changes else (tmp_path / "straight", train(root, tmp_path / "straight", *changes))
    original, count = data.Batches.__next__, iter(range(1, 100))

    def die(self):
        if next(count) == 4:
            raise KeyboardInterrupt
        return original(self)

    monkeypatch.setattr(data.Batches, "__next__", die)
    with pytest.raises(KeyboardInterrupt):
        train(root, tmp_path / "killed", *changes)
    monkeypatch.undo()
    assert train(root, tmp_path / "killed", *changes) == straight[1]
    assert same(saved(straight[0]), saved(tmp_path / "killed"))
    assert [line["step"] for line in straight[1]] == [1, 2, 3, 4, 5]


def test_lora_learns_and_changes_nothing_else(root, tuned):
    run, lines = tuned
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.03
    with checkpoints.manager(run) as manager:
        metadata = manager.item_metadata(5)["state"]
    trained = {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(metadata["params"])}
    assert len(trained) == 10 and all(re.search(r"\['(a|b)'\]$", name) for name in trained)
    before, after = saved(root / "base"), saved(run)
    changed = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True)
        if not np.array_equal(x, y)
    }
    assert changed == {
        *(f"layers/cross/{name}" for name in ("q_DHGK", "kv_DHCK", "out_HGKD")),
        *("layers/up_DCF", "layers/down_FD"),
    }


@pytest.mark.slow
def test_all_weights_learn(root, tmp_path):
    lines = train(root, tmp_path / "run", "lora.rank=0")
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.05
    before, after = (jax.tree_util.tree_leaves(saved(run)) for run in (root / "base", tmp_path / "run"))
    assert not any(np.array_equal(x, y) for x, y in zip(before, after, strict=True))


def test_a_run_is_used_like_the_imported_one_and_without_it(root, tuned, tmp_path):
    run, out = tuned[0], tmp_path / "out"
    before = audiolm_jax.load(root / "base").generate("rock", frames=9)
    (root / "base").rename(root / "elsewhere")
    try:
        text = ["--text", "rock", "--frames", "9", "--out", str(tmp_path / "a.wav")]
        assert main.main(["generate", "--workdir", str(run), *text]) == 0
        assert main.main(["export", "--workdir", str(run), "--out", str(out)]) == 0
        made = audiolm_jax.load(run).generate("rock", frames=9).codes_TQ
    finally:
        (root / "elsewhere").rename(root / "base")
    assert made.tolist() != before.codes_TQ.tolist()
    assert made.tolist() == audiolm_jax.load(out).generate("rock", frames=9).codes_TQ.tolist()
    published.import_run(out, tmp_path / "again")
    assert same(saved(run), saved(tmp_path / "again"))


def test_what_is_exported_has_the_likelihood_that_the_reference_finds(root, tuned, tmp_path):
    pytest.importorskip("torch", reason="the reference needs torch: pip install 'audiolm-jax[parity]'")
    run, out = tuned[0], tmp_path / "out"
    published.export_run(run, out)
    theirs = reopened(out)
    assert (
        main.main(["evaluate", "--workdir", str(run), "--data", str(root / "data"), "--config.evaluation.split=train"])
        == 0
    )
    found = json.loads((run / "evaluation.json").read_text())["utterance_bits"]
    base, *_ = opened(root)
    source = tokens.open_split(root / "data" / "tokens", "train")
    ours = audiolm_jax.load(run)
    for number, example in enumerate(map(source.__getitem__, range(len(source)))):
        frames, ids = len(example["codes"]), np.array([base.token_ids(example["text"])])
        row = documents.causal_row((("audio", example["codes"].astype(np.int32)),), ours.grid, base.vocab)
        batch = {f"{name}_BLS": row[name][None] for name in ("targets", "heads")}
        batch |= {"text_BE": ids, "text_valid_BE": ids >= 0}
        nats = 4 * frames * reference_loss(theirs, batch, base.vocab).item()
        np.testing.assert_allclose(found[number], nats / np.log(2), rtol=1e-4)


@pytest.mark.parametrize("preset", sharding.PRESETS)
@pytest.mark.parametrize("rank", [0, 4])
def test_the_step_keeps_its_shardings(root, preset, rank):
    """Traced on all three axes of a mesh."""
    base, batches, config = opened(root, f"lora.rank={rank}")
    model, rules = configs.section(config, "model"), sharding.PRESETS[preset]
    settings = TrainingConfig(accumulate=2, ema=0.5)
    devices = np.array(jax.devices()).reshape(2, 2, 2)
    with jax.set_mesh(Mesh(devices, sharding.AXES, axis_types=(AxisType.Explicit,) * 3)):
        whole = checkpoints.abstract_model(model, base.vocab, rules)
        parts = program(model, base.vocab, rules, OptimizerConfig(), settings, base)
        params = nnx.to_pure_dict(nnx.split(whole)[1])
        state = jax.eval_shape(lambda weights: init_state(parts, jax.random.key(0), weights), params)

        def array(name, x):
            spec = P(None, rules.batch, rules.length if "L" in name.rpartition("_")[2] else None)
            at = NamedSharding(jax.sharding.get_abstract_mesh(), spec)
            return jax.ShapeDtypeStruct((2, len(x) // 2, *x.shape[1:]), x.dtype, sharding=at)

        batch = {name: array(name, x) for name, x in next(batches).items() if np.ndim(x)}
        text = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), nnx.state(base.encoder))
        frozen = {"text": text, "params": params if rank else {}}
        after, metrics = jax.eval_shape(functools.partial(train_step, program=parts), state, batch, frozen)
        made = jax.eval_shape(base.merge, after.params, frozen)
    assert metrics["loss"].shape == ()
    for a, b in ((state, after), (params, made)):
        assert [layout(x) for x in jax.tree.leaves(a)] == [layout(x) for x in jax.tree.leaves(b)]
    for path in lora.chosen(base.lora, params) if rank else ():
        pair, weight = (functools.reduce(dict.__getitem__, path, tree) for tree in (state.params, params))
        assert axes(pair["a"])[:-1] + axes(pair["b"])[2:] == axes(weight)


@pytest.mark.slow
@pytest.mark.parametrize(
    "presets",
    [
        ("sharding.preset=data",),
        ("sharding.preset=fsdp", "training.accumulate=1"),
        ("sharding.preset=fsdp_context", "sharding.context=2"),
        ("sharding.preset=fsdp_tensor", "sharding.tensor=2", "lora.matrices=attention,cross,ffn"),
        ("sharding.preset=fsdp_tensor", "sharding.tensor=4", "lora.rank=0"),
    ],
)
def test_eight_devices_train_like_one(root, tmp_path, presets, monkeypatch):
    many = train(root, tmp_path / "many", "training.steps=3", *presets)
    monkeypatch.setattr(jax, "devices", lambda *_: jax.local_devices()[:1])
    rest = [change for change in presets if not change.startswith("sharding")]
    one = train(root, tmp_path / "one", "training.steps=3", *rest)
    for a, b in zip(one, many, strict=True):
        np.testing.assert_allclose([a["loss"], a["grad_norm"]], [b["loss"], b["grad_norm"]], rtol=2e-4)


@pytest.mark.slow
def test_a_probe_makes_music(root, tmp_path):
    train(root, tmp_path / "run", "training.steps=1", "training.probe_every=1")
    board = b"".join(path.read_bytes() for path in (tmp_path / "run" / "tensorboard").iterdir())
    assert b"music/1" in board and b"RIFF" in board


def test_the_base_decides_and_is_not_contradicted(root):
    config = finetune.configured(configured(root))
    assert (config.model.layers, config.model.width, config.model.cross_width) == (2, 32, 12)
    assert config.codec.path == str(root / "base" / "codec") and config.corpus.sample_rate == 600
    assert not config.data.packing and config.data.max_frames == 3000
    finetune.configured(configured(root, "model.layers=2", "model.dtype=float32"))  # the same, or free
    with pytest.raises(InputError, match=r"model\.layers is 6 here and 2 there; serialization\.strategy is 'flat'"):
        finetune.configured(configured(root, "model.layers=6", "serialization.strategy=flat"))


def test_a_stereo_codec_hears_one_channel_twice(root):
    mono = codecs.load("encodec", root / "base" / "codec")
    corpus = corpora.CorpusConfig(name="folder", path=str(root / "recordings"), sample_rate=600)
    members = [item for item in corpora.utterances(corpus, root) if item.key in ("a", "c")]
    with ThreadPoolExecutor(1) as pool, encoding.Progress(2, False) as bar:
        alone, both = (encoding.encode(members, codec, 4.0, pool, bar) for codec in (mono, Stereo(mono)))
    for (codes_TQ, _), (stereo_TQ, _) in zip(alone, both, strict=True):
        np.testing.assert_array_equal(stereo_TQ, np.repeat(codes_TQ, 2, axis=1))


def refused(capsys, *arguments):
    assert main.main([*map(str, arguments)]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("audiolm: ")
    return said


def test_bad_input_is_one_sentence(root, tmp_path, capsys):
    start = ["train", "--config", "finetune_musicgen", "--data", root / "data", "--workdir", tmp_path / "run"]
    base = f"--config.finetune.base={root / 'base'}"
    small = [f"--config.{change}" for change in SMALL]
    assert "was not made by `audiolm import`" in refused(capsys, *start, f"--config.finetune.base={tmp_path}")
    assert "lora.rank=4 needs weights to start from" in refused(capsys, *start, *small, "--config.finetune.base=")
    assert "lora.rank=33 must be at most 32, the largest rank of layers/cross/q_DHGK" in refused(
        capsys, *start, base, *small, "--config.lora.rank=33"
    )
    assert "lora.matrices=('heads',) must be a tuple" in refused(capsys, *start, base, "--config.lora.matrices=heads")
    assert "positions hold no frame" in refused(capsys, *start, base, *small, "--config.data.sequence_length=4")
    assert "model.width is 64 here and 32 there" in refused(capsys, *start, base, "--config.model.width=64")
    assert not (tmp_path / "run" / "config.json").exists()
    other = tmp_path / "other"
    random_musicgen.write(other / "published", **DECODER, vocab_size=32)
    prepare = ["prepare", "--config", "finetune_musicgen", base, "--data", tmp_path / "data"]
    (tmp_path / "empty").mkdir()
    assert "no recordings in" in refused(capsys, *prepare, f"--config.corpus.path={tmp_path / 'empty'}")
    silent = recordings(tmp_path / "silent", texts=None)
    assert "recordings cannot be used, more than corpus.max_reject_fraction" in refused(
        capsys, *prepare, f"--config.corpus.path={silent}", "--config.corpus.min_seconds=0.1"
    )


def test_tokens_without_texts_or_of_another_codec_are_refused(root, tmp_path):
    base, _, config = opened(root)
    source = tokens.open_split(root / "data" / "tokens", "train")
    source.head = lambda index: {"text": ""}
    section, order = (configs.section(config, name) for name in ("data", "serialization"))
    with pytest.raises(InputError, match="no recording of split 'train' has a text; fine-tuning needs one for each"):
        base.view(source, section, serialization.bind(order, 4, "bare"), 0)
    found = root / "data" / "tokens"
    metadata = tokens.locate(found) / "metadata.json"
    text = metadata.read_text()
    try:
        metadata.write_text(text.replace(base.spec.codec.fingerprint, "0" * 64))
        with pytest.raises(InputError, match="were made by the codec 'encodec' with fingerprint 0000"):
            train(root, tmp_path / "run")
    finally:
        metadata.write_text(text)


def test_another_base_is_another_run(root, tuned, tmp_path):
    published.export_run(tuned[0], tmp_path / "published")
    published.import_run(tmp_path / "published", tmp_path / "base")
    with pytest.raises(InputError, match=r"source\.base is '\w+' there and '\w+' here"):
        train(root, tuned[0], f"finetune.base={tmp_path / 'base'}")
    with pytest.raises(InputError, match="was not made by `audiolm import`"):
        train(root, tmp_path / "more", f"finetune.base={tuned[0]}")
