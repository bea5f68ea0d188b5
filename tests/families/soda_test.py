"""SODA: every position and step against `transformers`, files in and out, fine-tuning, and what it refuses."""

import json
import shutil

import jax
import numpy as np
import pytest
import soundfile

import audiolm_jax
from audiolm_jax import config as configs
from audiolm_jax import files, runs
from audiolm_jax.cli import main
from audiolm_jax.data import batches, tokens
from audiolm_jax.errors import InputError
from audiolm_jax.families import finetune, published, soda
from audiolm_jax.hub.files import INDEX
from audiolm_jax.model import checkpoints, transformer
from audiolm_jax.sampling import SamplingConfig, requests
from audiolm_jax.serialization import documents
from audiolm_jax.serialization.vocab import AUDIO, BOS, END_AUDIO, EOS, HEAD_CODE, HEAD_TEXT, TEXT_START
from tests.helpers import published_soda
from tests.helpers.published_soda import CODEBOOKS, CODES, reopened

GREEDY = SamplingConfig(temperature=(0.0,), chunk=8)
SMALL = [
    *("data.sequence_length=80", "data.batch_size=8", "data.text_weight=1", "data.drop_long=False"),
    *("optimizer.learning_rate=1e-2", "optimizer.warmup=0", "optimizer.schedule=constant"),
    *("training.steps=4", "training.log_every=1", "lora.rank=4"),
    *("corpus.valid_fraction=0", "corpus.test_fraction=0", "corpus.min_seconds=0.01", "model.remat=False"),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """published (untied) and tied checkpoints, base (imported), recordings and data (prepared)."""
    root = tmp_path_factory.mktemp("soda")
    published_soda.write(root / "published")
    published_soda.write(root / "tied", tied=True)
    assert main.main(["import", str(root / "published"), str(root / "base")]) == 0
    (root / "recordings").mkdir()
    rng = np.random.default_rng(0)
    for number in range(8):
        wave = 0.3 * np.sin(np.arange(96 + 12 * number) * (0.1 + 0.05 * number)) + 0.05 * rng.standard_normal()
        soundfile.write(root / "recordings" / f"{number}.wav", wave, 1200)
        (root / "recordings" / f"{number}.txt").write_text(["one two", "three of seven", "eleven"][number % 3])
    runs.prepare(configured(root), root / "data", progress=False)
    return root


def configured(root, *overrides):
    start = [f"finetune.base={root / 'base'}", f"corpus.path={root / 'recordings'}"]
    return configs.load("finetune_soda", [*start, *SMALL, *overrides])


def their_ids(tokens_L, text, vocab):
    """Ids of ours as SODA has them."""
    numbers = dict(zip(TEXT_START + np.arange(text.size), text.ids, strict=True)) | soda.marks(text)
    numbers |= {vocab.code_start + n: text.limit + n for n in range(CODEBOOKS * CODES)}
    return np.array([numbers[int(token)] for token in tokens_L])


def logits_of(theirs, ids):
    torch = pytest.importorskip("torch", reason="the reference needs torch: pip install 'audiolm-jax[parity]'")
    with torch.no_grad():
        return theirs(torch.tensor(np.asarray(ids)[None])).logits[0].numpy()


@pytest.mark.parametrize("kind", ["published", "tied"])
def test_every_position_and_step_equals_the_reference(root, kind):
    """Of every id that SODA can mean: those are the ids of all legal sets but lengths, and no other."""
    pytest.importorskip("transformers", reason="pip install 'audiolm-jax[parity]'")
    theirs, own = reopened(root / kind), published.read(root / kind)
    vocab, grid, text = own.spec.vocab, own.spec.grid, own.text
    codes_TQ = np.random.default_rng(1).integers(0, CODES, (5, CODEBOOKS))
    document = (("text", text.encode("one seven")), ("audio", codes_TQ), ("text", text.encode("two")))
    tokens_L = documents.causal_row(document, grid, vocab)["tokens"][:, 0]
    ids_L = their_ids(tokens_L, text, vocab)
    mark = own.text.tokenizer.token_to_id
    assert ids_L[0] == mark("<|begin_of_text|>") and ids_L[1] == mark("<|text_start|>")
    said = text.tokenizer.encode("one seven", add_special_tokens=False).ids
    start = 2 + len(said)
    assert ids_L[2:start].tolist() == said and ids_L[start] == mark("<|text_end|>")
    assert ids_L[start + 1] == mark("<|audio_start|>")
    first = start + 2
    expected_codes = text.limit + np.arange(CODEBOOKS) * CODES + codes_TQ
    assert ids_L[first : first + 15].tolist() == expected_codes.ravel().tolist()
    assert ids_L[first + 15] == mark("<|audio_end|>") and ids_L[-1] == mark("<|text_end|>")

    expected_LV = logits_of(theirs, ids_L)
    ours = np.array([*soda.marks(text), *range(TEXT_START, vocab.length_start)])
    columns = their_ids(ours, text, vocab)
    assert sorted(columns) == list(range(theirs.config.vocab_size))  # every id that SODA can mean, and no other
    place_1L, P = np.arange(len(ids_L))[None], 7

    @jax.jit
    def every(model, tokens_1L):
        whole = model.logits(model(tokens_1L[..., None], place_1L, 1 + 0 * place_1L))
        parts = transformer.unstack(model)
        hidden, prompt = parts.prefill(tokens_1L[:, :P, None], place_1L[:, :P], 1 + 0 * place_1L[:, :P])

        def step(cache, i):
            token = jax.lax.dynamic_slice_in_dim(tokens_1L, P + i, 1, axis=1)
            hidden, cache = parts.step(token, P + i[None], i, prompt, place_1L[:, :P] >= 0, cache)
            return cache, parts.logits(hidden)

        steps = jax.lax.scan(step, parts.init_cache(1, len(ids_L) - P), jax.numpy.arange(len(ids_L) - P))[1]
        return whole[0], parts.logits(hidden)[0], steps[:, 0]

    whole_LV, prefill_PV, steps_LV = map(np.asarray, every(own.model, tokens_L[None]))
    assert expected_LV.std() > 0.5
    for found_LV in (whole_LV, np.concatenate([prefill_PV, steps_LV])):
        np.testing.assert_allclose(found_LV[:, ours], expected_LV[:, columns], atol=1e-4)


def test_greedy_speech_is_the_likeliest_code_of_the_reference(root):
    """And its audio is Mimi's."""
    pytest.importorskip("transformers", reason="pip install 'audiolm-jax[parity]'")
    generator, theirs = audiolm_jax.load(root / "base", GREEDY), reopened(root / "published")
    text, vocab = generator.text, generator.vocab
    result = generator.generate("three", max_frames=6)
    document = (("text", text.encode("three")), ("audio", result.codes_TQ))
    ids_L = their_ids(documents.causal_row(document, generator.grid, vocab)["tokens"][:, 0], text, vocab)
    first = len(ids_L) - 1 - result.codes_TQ.size
    logits_LV = logits_of(theirs, ids_L)
    for n, (t, q) in enumerate(np.ndindex(*result.codes_TQ.shape)):
        start = text.limit + q * CODES
        assert logits_LV[first + n - 1, start : start + CODES].argmax() == result.codes_TQ[t, q]
    np.testing.assert_array_equal(result.waveform, generator.codec.decode(result.codes_TQ))
    assert len(result.waveform) == 12 * len(result.codes_TQ) and generator.codec.codebooks == CODEBOOKS
    assert generator.request("one", audio=result.codes_TQ, frames=8).prompt_TQ.shape == result.codes_TQ.shape


@pytest.mark.parametrize("kind", ["published", "tied"])
def test_import_and_export_keep_every_bit(root, tmp_path, kind):
    published.import_run(root / kind, tmp_path / "run")
    published.export_run(tmp_path / "run", tmp_path / "out")
    before, after = (files.read_safetensors(at / "model.safetensors")[0] for at in (root / kind, tmp_path / "out"))
    assert before.keys() == after.keys() and all(np.array_equal(before[name], after[name]) for name in before)
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (root / kind / "tokenizer.json").read_bytes()
    published.import_run(tmp_path / "out", tmp_path / "again")
    one, two = (checkpoints.restore_params(tmp_path / name) for name in ("run", "again"))
    assert checkpoints.digest(checkpoints.params_of(one[0])) == checkpoints.digest(checkpoints.params_of(two[0]))
    assert one[1] == two[1]
    transformers = pytest.importorskip("transformers", reason="pip install 'audiolm-jax[parity]'")
    state = reopened(tmp_path / "out").state_dict()
    assert all(np.array_equal(state[name].float().numpy(), before[name]) for name in before)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "out" / "tokenizer.json"))
    assert tokenizer("one")["input_ids"][0] == tokenizer.convert_tokens_to_ids("<|begin_of_text|>")


def training_row(root):
    """(a row of the training, its parts, the model's Spec)"""
    config = finetune.configured(configured(root))
    base, section = finetune.open_base(config), configs.section(config, "data")
    source = tokens.open_split(root / "data" / "tokens", "train", base.spec.codec.fingerprint, base.text)
    assert base.view(source, section, base.spec.grid, 0) is None
    rows = batches.training_batches(source, section, base.spec.grid, base.vocab, 0)
    batch = next(rows)
    rows.close()
    return batch, source, base


def test_a_training_row_predicts_the_very_next_cell(root):
    """Alignment: every target is what stands next in the row, and nothing is left out. Leak: no logit moves with an
    input behind it."""
    batch, source, base = training_row(root)
    vocab, text, seen = base.vocab, base.text, 0
    known = {
        tuple(example["codes"].ravel()): example["text"] for example in map(source.__getitem__, range(len(source)))
    }
    for b in range(8):
        for segment in range(1, batch["segments_BL"][b].max() + 1):
            here = batch["segments_BL"][b] == segment
            inputs, targets, heads = (batch[f"{name}_BLS"][b, here, 0] for name in ("tokens", "targets", "heads"))
            assert (targets[:-1] == inputs[1:]).all() and targets[-1] == EOS and (heads > 0).all()
            assert (batch["weights_BLS"][b, here] == 1).all()
            legal = vocab.legal_HV[heads, targets]
            assert legal.all() and inputs[0] == BOS and inputs[-1] == END_AUDIO
            start = int(np.argmax(inputs == AUDIO))
            codes = inputs[start + 1 : -1].reshape(-1, CODEBOOKS) - vocab.code_offsets
            words = inputs[1:start]
            assert words[0] == vocab.code_start - 2 and words[-1] == vocab.code_start - 1
            assert text.decode(words[1:-1]) == known[tuple(codes.ravel())]
            assert (heads[start:-2].reshape(-1)[1:CODEBOOKS] == HEAD_CODE + np.arange(1, CODEBOOKS)).all()
            assert (heads[:start] == HEAD_TEXT).all()
            seen += 1
    assert seen >= 8

    model = checkpoints.restore_params(root / "base")[0]
    tokens_1L = batch["tokens_BLS"][:1, :, 0]
    place_1L, segments_1L = batch["positions_BL"][:1], batch["segments_BL"][:1]
    run = jax.jit(lambda model, x: model(x[..., None], place_1L, segments_1L))
    before = np.asarray(run(model, tokens_1L))[0]
    for at in (5, 20, 33):
        other = tokens_1L.copy()
        other[0, at] = vocab.code_start + 3 if other[0, at] != vocab.code_start + 3 else vocab.code_start
        moved = np.abs(np.asarray(run(model, other))[0] - before).max(axis=-1)
        assert (moved[:at] == 0).all() and moved[at] > 1e-3


@pytest.mark.parametrize("rank", [4, pytest.param(0, marks=pytest.mark.slow)])
def test_fine_tuning_lowers_the_loss_and_needs_no_base(root, tmp_path, rank):
    runs.train(configured(root, f"lora.rank={rank}"), root / "data", tmp_path / "run", progress=False)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.2
    spec = checkpoints.read_spec(tmp_path / "run")
    assert spec.source.base and spec.framing == "delimited" and spec.text == checkpoints.read_spec(root / "base").text
    (root / "base").rename(root / "elsewhere")
    try:
        own = audiolm_jax.load(tmp_path / "run")
        published.export_run(tmp_path / "run", tmp_path / "out")
    finally:
        (root / "elsewhere").rename(root / "base")
    assert own.text.encode("one").size and own.codec.codebooks == CODEBOOKS
    before, after = (
        files.read_safetensors(at / "model.safetensors")[0] for at in (root / "published", tmp_path / "out")
    )
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    attention = {name for name in before if "self_attn" in name and "norm" not in name}
    assert attention <= changed and (rank == 0) == (soda.EMBEDDING in changed)


def edited(root, folder, **changes):
    shutil.copytree(root / "published", folder)
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "llama"}, "describes a model of type 'llama'; "),
        (
            {"vocab_size": 300},
            r"has vocab_size=300, tokenizer.json 4470 pieces with codes from 4374 on and the codec 32",
        ),
        ({"num_hidden_layers": 3}, r"model.layers.2.self_attn.q_proj.weight is missing|layers.2.*missing"),
        ({"hidden_size": 20}, r"model.embed_tokens.weight is \(4470, 24\) where \(4470, 20\) is needed"),
        (
            {"tie_word_embeddings": True},
            "has a lm_head.weight of its own, but config.json says tie_word_embeddings=true",
        ),
        ({"max_position_embeddings": None}, "config.json lacks max_position_embeddings, or a usable number"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope_scaling='yarn' is not supported; known is 'default'"),
    ],
)
def test_a_configuration_of_another_model_is_named(root, tmp_path, changes, said):
    with pytest.raises(InputError, match=said):
        published.read(edited(root, tmp_path / "bad", **changes))


def test_files_of_another_model_are_named(root, tmp_path):
    folder = edited(root, tmp_path / "bad")
    published_soda.write_tokenizer(folder / "tokenizer.json", marks=("<|im_start|>",))
    with pytest.raises(InputError, match=r"tokenizer.json has no <\|audio_start\|>; it belongs to another model"):
        published.read(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"lacks tokenizer.json"):
        published.read(folder)

    untied = edited(root, tmp_path / "untied")
    tensors = files.read_safetensors(untied / "model.safetensors")[0]
    del tensors[soda.HEAD]
    files.write_safetensors(untied / "model.safetensors", tensors)
    with pytest.raises(InputError, match=r"lm_head.weight is missing"):
        published.read(untied)

    shards = edited(root, tmp_path / "shards")
    (shards / "model.safetensors").unlink()
    names = {"weight_map": {"model.norm.weight": "model-1.safetensors"}}
    (shards / INDEX).write_text(json.dumps(names))
    with pytest.raises(InputError, match=r"lacks model-1.safetensors"):
        published.read(shards)

    (tmp_path / "untied" / "codec" / "config.json").unlink()
    with pytest.raises(InputError, match=r"config.json does not exist"):
        published.read(untied)


def test_texts_that_are_none_are_named(root):
    generator = audiolm_jax.load(root / "base")
    for said in (chr(0xE005), "a <|audio_start|> b"):
        with pytest.raises(InputError, match="which is no text to this model"):
            generator.request(said, frames=2)
    with pytest.raises(InputError, match="the text is empty"):
        generator.request("", frames=2)
    assert requests.check(generator.request("one", frames=2), generator.grid, generator.vocab, None) is None
