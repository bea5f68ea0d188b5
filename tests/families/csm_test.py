"""CSM against `transformers` (scaled dot-product attention) on random weights of odd small sizes, and its files."""

import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from flax import nnx
from flax.traverse_util import flatten_dict

import audiolm_jax
from audiolm_jax import config as configs
from audiolm_jax import files, runs
from audiolm_jax.cli import main
from audiolm_jax.data import batches as data
from audiolm_jax.data import tokens
from audiolm_jax.data.config import DataConfig
from audiolm_jax.data.examples import make_vocab
from audiolm_jax.errors import InputError
from audiolm_jax.families import csm, finetune
from audiolm_jax.model import checkpoints, losses, sharding
from audiolm_jax.model.config import DepthConfig, ModelConfig, table_rows
from audiolm_jax.model.transformer import unstack
from audiolm_jax.serialization import documents
from audiolm_jax.serialization.vocab import TEXT_START, Vocab
from experiments.colab.random_musicgen import sound
from tests.helpers import published_csm
from tests.helpers.published_csm import BEGIN, BOOKS, CODES, END

torch = pytest.importorskip("torch", reason="the reference needs torch: pip install 'audiolm-jax[parity]'")
pytest.importorskip("transformers", reason="pip install 'audiolm-jax[parity]'")

HOP = 12  # of the codec


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(the reference, its folder)"""
    folder = tmp_path_factory.mktemp("csm")
    return published_csm.made(folder), folder


@pytest.fixture(scope="module")
def published(made):
    return csm.read(made[1])


@pytest.fixture(scope="module")
def generator(published):
    return published.generator()


def dialogue(text, seed=0):
    """Two turns with audio, codes that the reference is given as they are."""
    rng = np.random.default_rng(seed)
    first, second = (rng.integers(1, CODES, (frames, BOOKS)).astype(np.int32) for frames in (5, 7))
    said = [
        ("text", text.encode(f"{BEGIN}[{speaker}]{words}{END}")) for speaker, words in (("0", "hello"), ("1", "ha"))
    ]
    return (said[0], ("audio", first), said[1], ("audio", second))


def test_all_logits_and_every_cached_step_equal_the_reference(made, published):
    reference, vocab = made[0], published.vocab
    row = documents.causal_row(dialogue(published.text), published.spec.grid, vocab)
    tokens_LQ, L = row["tokens"], len(row["positions"])
    is_text_L = tokens_LQ[:, 0] < vocab.code_start
    codes_LQ = np.where(is_text_L[:, None], 0, tokens_LQ - vocab.code_offsets)
    with torch.no_grad():
        embedded = reference.backbone_model.embed_tokens(torch.tensor(codes_LQ)[None])
        words = reference.embed_text_tokens(torch.tensor(np.where(is_text_L, tokens_LQ[:, 0] - TEXT_START, 0))[None])
        embedded = torch.where(torch.tensor(is_text_L)[None, :, None], words, embedded)
        out = reference(inputs_embeds=embedded, output_hidden_states=True)
        states_LD, expected_LK = out.hidden_states[-1][0], out.logits[0, :, :CODES].numpy()
        # The codes that are predicted at a position stand at the next one; 3-D ids in steps after a prompt.
        given = torch.cat([torch.zeros(L - 1, 1, dtype=torch.long), torch.tensor(codes_LQ[1:, :-1])], 1)
        finer = reference.depth_decoder(given, backbone_last_hidden_state=states_LD[:-1]).logits[..., :CODES].numpy()
        P = int(np.argmax(~is_text_L))
        past, steps = reference(inputs_embeds=embedded[:, :P], use_cache=True).past_key_values, []
        for n in range(P, P + 5):
            ids = torch.tensor(codes_LQ[None, n : n + 1])
            step = reference(input_ids=ids, past_key_values=past, use_cache=True)
            past, steps = step.past_key_values, [*steps, step.logits[0, -1, :CODES].numpy()]
    np.testing.assert_allclose(np.stack(steps), expected_LK[P : P + 5], atol=1e-4)  # the reference with itself

    first = slice(vocab.first.code_start, vocab.first.code_start + CODES)

    @jax.jit
    def ours(model, tokens_BLS):
        positions_BL = jnp.arange(L, dtype=jnp.int32)[None]
        hidden_BLD = model(tokens_BLS, positions_BL, 0 * positions_BL + 1)
        state_ND, table_VD, network = hidden_BLD[0, :-1], model.embedding_VD[...], model.depth
        finer_NCK = network.logits(network(state_ND, tokens_BLS[0, 1:, :-1], table_VD))

        def pick(c, logits_MK, seen_MCK):
            logits_M1K = jax.sharding.reshard(logits_MK, jax.P())[:, None]
            token_M = jnp.take(tokens_BLS[0, 1:], c + 1, axis=1)
            return token_M, jax.lax.dynamic_update_slice_in_dim(seen_MCK, logits_M1K, c, axis=1)

        drawn_NCK = network.unstacked().draw(
            state_ND, tokens_BLS[0, 1:, 0], jnp.int32(BOOKS - 1), pick, jnp.zeros(finer_NCK.shape), table_VD
        )
        decoder = unstack(model)
        _, prompt = decoder.prefill(tokens_BLS[:, :P], positions_BL[:, :P], 0 * positions_BL[:, :P] + 1)
        cache, made = decoder.init_cache(1, 5), []
        for i in range(5):
            at = (positions_BL[:, P + i], jnp.int32(i), prompt, jnp.ones((1, P), bool))
            hidden_BD, cache = decoder.step(tokens_BLS[:, P + i], *at, cache)
            made.append(model.logits(hidden_BD)[0, first])
        return model.logits(hidden_BLD)[0, :, first], finer_NCK, drawn_NCK, jnp.stack(made)

    with jax.set_mesh(sharding.single_device_mesh()):
        whole, in_depth, one_by_one, cached = map(np.asarray, ours(published.model, jnp.asarray(tokens_LQ)[None]))
    np.testing.assert_allclose(whole, expected_LK, atol=1e-4)
    np.testing.assert_allclose(cached, expected_LK[P : P + 5], atol=1e-4)
    audio = ~is_text_L[1:]  # before text the depth network predicts nothing
    for found in (in_depth, one_by_one):
        np.testing.assert_allclose(found[audio], finer[audio], atol=1e-4)
    assert expected_LK.std() > 0.5 and finer.std() > 0.5


def test_greedy_generation_after_a_dialogue_equals_the_reference(made, generator, published):
    """The waveform of the turn before goes through the codec here and there; both pick the likeliest codes."""
    reference, frames = made[0], 6
    heard = sound(0, 9 * HOP)
    fields = reference.config
    words = [published.text.encode(f"{BEGIN}{said}{END}") - TEXT_START for said in ("[1]who is there", "[0]hello")]
    ids = [*words[0], *[fields.audio_token_id] * 9, fields.audio_eos_token_id, *words[1]]
    with torch.no_grad():
        expected = reference.generate(
            input_ids=torch.tensor([ids]),
            input_values=torch.tensor(heard)[None, None],
            input_values_cutoffs=torch.tensor([[len(heard)]]),
            attention_mask=torch.ones(1, len(ids)),  # it would take audio for padding, which has the same id
            do_sample=False,
            depth_decoder_do_sample=False,
            max_new_tokens=frames,
        )
    options = {"frames": frames, "temperature": 0.0, "top_k": 0}
    result = generator.generate("hello", turns=[("1", "who is there", heard)], **options)
    np.testing.assert_array_equal(result.codes_TQ, expected[0].numpy())
    assert len(np.unique(result.codes_TQ)) > 5
    other = generator.generate("hello", turns=[("0", "who is there", heard)], **options)
    assert (other.codes_TQ != result.codes_TQ).any()
    assert generator.sampling.temperature == (0.9,) and generator.sampling.top_k == (50,)


def test_a_training_row_sees_no_later_code_and_every_earlier_one(published):
    """Every code of the last segment changed in turn: what is predicted before it stays bit for bit, and it is aligned:
    its own log-probability changes, and so do those after it."""
    grid, vocab = published.spec.grid, published.vocab
    *before, (_, codes_TQ) = dialogue(published.text)
    codes_TQ = codes_TQ[:3]
    changed = [codes_TQ]
    for cell in np.ndindex(codes_TQ.shape):
        other = codes_TQ.copy()
        other[cell] = 1 + other[cell] % (CODES - 1)
        changed.append(other)
    rows = [documents.causal_row((*before, ("audio", x)), grid, vocab) for x in changed]
    names = {"tokens": "BLS", "positions": "BL", "targets": "BLS", "heads": "BLS", "weights": "BLS"}
    batch = {f"{name}_{axes}": np.stack([row[name] for row in rows]) for name, axes in names.items()}

    @jax.jit
    def logprobs(model, batch):
        hidden_BLD = model(batch["tokens_BLS"], batch["positions_BL"], 0 * batch["positions_BL"] + 1)
        parts = losses.scored(model, hidden_BLD, batch, vocab)
        return jnp.concatenate([part.logprob_BLS for part in parts], axis=-1)

    with jax.set_mesh(sharding.single_device_mesh()):
        found_BLQ = np.asarray(logprobs(published.model, batch))
    first = len(rows[0]["positions"]) - 5  # the last position of the text predicts frame 0
    order_BN = found_BLQ[:, first : first + 4].reshape(len(rows), -1)  # 3 frames and the end, code by code
    assert (order_BN < 0).all() and not found_BLQ[:, first + 4 :].any()
    for n in range(codes_TQ.size):
        same_N = order_BN[1 + n] == order_BN[0]
        assert same_N[:n].all() and not same_N[n:].any()


def test_what_is_written_is_what_was_read(made, published, tmp_path, capsys):
    reference, folder = made
    csm.write(tmp_path / "out", published)
    again = published_csm.reopened(tmp_path / "out")
    for (name, a), (_, b) in zip(reference.state_dict().items(), again.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    tensors = [files.read_safetensors(x / "model.safetensors", "test")[0] for x in (folder, tmp_path / "out")]
    assert tensors[0].keys() == tensors[1].keys()
    assert all(np.array_equal(x, tensors[1][name]) for name, x in tensors[0].items())
    run, out, back = (str(tmp_path / name) for name in ("run", "export", "back"))
    assert main.main(["import", str(folder), run]) == main.main(["export", "--workdir", run, "--out", out]) == 0
    assert main.main(["import", out, back]) == 0
    params = [checkpoints.params_of(checkpoints.restore_params(x)[0]) for x in (run, back)]
    assert all(np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, params), strict=True))
    exported = files.read_safetensors(tmp_path / "export" / "model.safetensors", "test")[0]
    assert all(np.array_equal(x, exported[name]) for name, x in tensors[0].items())
    assert audiolm_jax.load(run).text.encode("hello").tolist() == published.text.encode("hello").tolist()
    assert main.main(["import", str(folder), run]) == 2
    assert "there is a run already" in capsys.readouterr().err


def test_the_layout_of_the_authors_gives_the_same_parameters(made, published, tmp_path):
    published_csm.original(made[1], tmp_path)
    names = files.read_safetensors(tmp_path / "model.safetensors", "test")[0].keys()
    assert "backbone.layers.0.attn.q_proj.weight" in names and not any("codec" in name for name in names)
    theirs = csm.read(tmp_path)
    for x, y in zip(*(jax.tree.leaves(nnx.state(p.model)) for p in (theirs, published)), strict=True):
        np.testing.assert_array_equal(x, y)
    assert all(np.array_equal(x, published.spare[name]) for name, x in theirs.spare.items())
    assert theirs.codec.fingerprint == published.codec.fingerprint
    shutil.rmtree(tmp_path / "codec")
    with pytest.raises(InputError, match=r"holds no codec .* put the files of kyutai/mimi there"):
        csm.read(tmp_path)


def test_weights_that_the_configuration_names(made, published, tmp_path):
    """Beside a file in the layout of the authors, as in the published repository."""
    published_csm.original(made[1], tmp_path)
    tensors, index = (
        files.read_safetensors(made[1] / "model.safetensors", "test")[0],
        "transformers.safetensors.index.json",
    )
    parts = {f"transformers-0000{n}-of-00002.safetensors": list(tensors)[n - 1 :: 2] for n in (1, 2)}
    for name, members in parts.items():
        files.write_safetensors(tmp_path / name, {member: tensors[member] for member in members})
    files.write_json(
        tmp_path / index, {"weight_map": {member: name for name, every in parts.items() for member in every}}
    )
    fields = json.loads((tmp_path / "config.json").read_text())
    files.write_json(tmp_path / "config.json", {**fields, "transformers_weights": index})
    (tmp_path / "model.safetensors").write_bytes(b"")
    shutil.rmtree(tmp_path / "codec")
    theirs = csm.read(tmp_path)
    for x, y in zip(*(jax.tree.leaves(nnx.state(p.model)) for p in (theirs, published)), strict=True):
        np.testing.assert_array_equal(x, y)
    (tmp_path / index).unlink()
    with pytest.raises(InputError, match=f"lacks {index}"):
        csm.read(tmp_path)
    files.write_json(tmp_path / "config.json", {**fields, "transformers_weights": "../x.safetensors"})
    with pytest.raises(InputError, match=r"transformers_weights='\.\./x\.safetensors'; a file beside it is needed"):
        csm.read(tmp_path)


def test_the_published_model_has_the_published_number_of_parameters():
    """1552.8 million without the codec: those of `transformers`, by its table and by the shapes of the model."""
    backbone, _, config = csm.parts({"model_type": "csm"})
    vocab = Vocab(32, 2048, 2048, text_size=backbone.text_vocab_size, text_given=True)
    entries = csm.table(config, vocab)
    spare = 3 * (32 * 2048 + 2048 + 31 * 1024)
    layers = {"layers": config.layers, "depth/layers": config.depth.layers}
    listed = sum(
        layers.get(row.path.rpartition("/")[0].split("/ffn_")[0].split("/attention_")[0], 1) * math.prod(shape)
        for row in entries
        for shape in row.shapes
    )
    assert listed + spare == 1_552_791_552
    rows = table_rows(vocab.size) - vocab.text_size - 32 * 2048  # structural, of lengths, padding
    columns = table_rows(vocab.first.size) - 2048
    made = checkpoints.count_parameters(config, vocab)
    assert made - 2048 * (rows + columns) + spare == 1_552_791_552
    assert made < 1.01 * 1_552_791_552


def test_moshi_has_the_published_number_of_parameters():
    """7687.7 million: a text stream and 16 codebooks of 2048 codes, of which the depth network predicts the first 8.
    The table of the 8 streams that are only heard is not in this model, and is added; heads are as wide here as the
    largest codebook, which is the text."""
    depth = DepthConfig(
        layers=6, width=1024, heads=16, kv_heads=16, head_width=64, ffn=2816, norm_eps=1e-8, weights="per_codebook",
        positions="none", projection="per_codebook", final_norm=False,
    )  # fmt: skip
    config = ModelConfig(
        layers=32, width=4096, heads=32, kv_heads=32, head_width=128, ffn=11264, norm_eps=1e-8, depth=depth
    )
    vocab = Vocab(9, (32001, *[2049] * 8), 1, text_size=1, text_given=True)
    sizes = sum(checkpoints.count_parameters(config, vocab) for _ in range(1))
    sizes -= 4096 * (table_rows(vocab.size) - 32001 - 8 * 2049) + 4096 * (table_rows(vocab.first.size) - 32000)
    sizes -= 8 * 1024 * (32001 - 2048)
    assert sizes + 8 * 2049 * 4096 == 7_687_729_152


def edited(folder, target, **changes):
    """A copy of a checkpoint with another config.json."""
    shutil.copytree(folder, target)
    fields = json.loads((target / "config.json").read_text())
    for name, value in changes.items():
        part, _, inner = name.partition("__")
        if inner:
            fields[part][inner] = value
        else:
            fields[part] = value
    files.write_json(target / "config.json", fields)
    return target


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "whale"}, "describes a model of type 'whale'"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'; 'silu' is needed"),
        ({"depth_decoder_config__num_codebooks": 5}, r"depth_decoder_config\.num_codebooks=5, but .* backbone is 4"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type='yarn'; default or llama3 is needed"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "lacks rope_theta, factor, .* or a usable number"),
        ({"tie_codebooks_embeddings": False}, "tie_codebooks_embeddings=False; True is needed"),
        ({"codebook_eos_token_id": 5}, "codebook_eos_token_id=5; 0 is needed"),
        ({"bos_token_id": 1000}, r"tokenizer\.json has no token 1000 \(bos_token_id\)"),
        ({"text_vocab_size": 47}, r"embed_text_tokens\.weight is \(48, 20\) where \(47, 20\) is needed"),
        ({"vocab_size": 36, "depth_decoder_config__vocab_size": 36}, r"embed_tokens\.weight is \(140, 20\) where"),
        ({"codec_config__num_quantizers": 3}, "codec.codebooks: 4 asked for, but this codec has 1 to 3"),
        ({"num_hidden_layers": 4}, r"backbone_model\.layers\.3\..* is missing"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_configuration_that_does_not_fit(made, tmp_path, changes, said):
    with pytest.raises(InputError, match=said) as caught:
        audiolm_jax.load(edited(made[1], tmp_path / "bad", **changes))
    assert len(str(caught.value).splitlines()) == 1


def test_files_that_do_not_fit(made, tmp_path):
    folder = edited(made[1], tmp_path / "bad")
    tensors = files.read_safetensors(folder / "model.safetensors", "test")[0]
    files.write_safetensors(folder / "model.safetensors", tensors | {csm.SAME_AUDIO: tensors[csm.AUDIO] + 1})
    with pytest.raises(InputError, match=r"has two tables of codes, .* one is needed"):
        csm.read(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        csm.read(folder)


def test_requests_that_do_not_fit(generator):
    codes = np.ones((2, BOOKS), np.int32)
    for options, said in (
        ({"turns": [("0", "hello")]}, r"a turn is .* it must be \(speaker, text, audio\)"),
        ({"turns": [("0", "yes", codes * 0)]}, "frame 0 of an audio segment is code 0 in every codebook"),
        ({"turns": [("0", "yes", np.ones((0, BOOKS), np.int32))]}, "an audio segment has 0 frames"),
        ({"turns": [("0", "yes", np.ones((90, BOOKS), np.int32))]}, "the context of this model has 96"),
        ({"turns": [("0", "yes\U0001f3b5", codes)]}, "has no piece"),
        ({"frames": 97}, r"a segment has 1\.\.96"),
    ):
        with pytest.raises(InputError, match=said):
            generator.request("hello", **options)


SAID = {"a": "hello", "b": "who is there", "c": "ha"}
SMALL = [
    *("data.sequence_length=96", "data.batch_size=8", "training.log_every=1", "training.checkpoint_every=3"),
    *("optimizer.learning_rate=1e-2", "optimizer.warmup=0", "optimizer.schedule=constant", "model.remat=False"),
    *("training.codebook_weights=3,1,1,1", "training.steps=3", "lora.matrices=attention,ffn", "lora.rank=2"),
]


@pytest.fixture(scope="module")
def root(made, tmp_path_factory):
    """base (imported) and data (prepared), through the command line."""
    root = tmp_path_factory.mktemp("tuned")
    (root / "recordings").mkdir()
    for number, (name, words) in enumerate(SAID.items()):
        soundfile.write(root / "recordings" / f"{name}.wav", sound(number, 30 * HOP), 1200)
        (root / "recordings" / f"{name}.txt").write_text(words)
    assert main.main(["import", str(made[1]), str(root / "base")]) == 0
    corpus = [f"--config.corpus.path={root / 'recordings'}", "--config.corpus.min_seconds=0.1"]
    split = ["--config.corpus.valid_fraction=0", "--config.corpus.test_fraction=0"]
    start = ["--config", "finetune_csm", f"--config.finetune.base={root / 'base'}"]
    assert main.main(["prepare", "--data", str(root / "data"), *start, *corpus, *split]) == 0
    return root


def train(root, workdir, *overrides):
    config = configs.load("finetune_csm", [f"finetune.base={root / 'base'}", *SMALL, *overrides])
    runs.train(config, root / "data", workdir, progress=False)
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("rank", [2, 0])
def test_fine_tuning_learns_and_goes_back(root, tmp_path, rank):
    lines = train(root, tmp_path / "run", f"lora.rank={rank}")
    assert lines[-1]["loss"] < lines[0]["loss"] and "end" in str(lines[0])
    before, after = (
        flatten_dict(checkpoints.params_of(checkpoints.restore_params(run)[0]))
        for run in (root / "base", tmp_path / "run")
    )
    changed = {"/".join(path) for path, x in before.items() if not np.array_equal(x, after[path])}
    matrices = {f"{part}/{name}" for part in csm.LAYERS for name in ("qkv_DHAK", "out_HGKD", "up_DCF", "down_FD")}
    assert changed == matrices if rank else changed == {"/".join(path) for path in before}
    made = audiolm_jax.load(tmp_path / "run").generate("hello", frames=5).codes_TQ
    assert main.main(["export", "--workdir", str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 0
    published_csm.reopened(tmp_path / "out")
    again = audiolm_jax.load(tmp_path / "out").generate("hello", frames=5).codes_TQ
    np.testing.assert_array_equal(made, again)


def test_a_batch_is_what_the_tokens_say(root):
    config = finetune.configured(configs.load("finetune_csm", [f"finetune.base={root / 'base'}", *SMALL]))
    base = finetune.open_base(config)
    source = tokens.open_split(root / "data" / "tokens", "train", base.spec.codec.fingerprint, base.text)
    section = configs.section(config, "data")
    batch = next(data.training_batches(source, section, base.spec.grid, base.vocab, 0))
    known = {example["text"]: example["codes"] for example in map(source.__getitem__, range(len(source)))}
    assert set(known) == set(SAID.values())
    rows = [
        documents.causal_row(
            (("text", base.text.encode(f"{BEGIN}[0]{words}{END}")), ("audio", codes.astype(np.int32))),
            base.spec.grid,
            base.vocab,
        )
        for words, codes in known.items()
    ]
    for name in ("tokens", "targets", "heads"):
        pieces = {row[name].tobytes() for row in rows}
        segments, values = batch["segments_BL"], batch[f"{name}_BLS"]
        found = {values[b][segments[b] == n].tobytes() for b in range(8) for n in range(1, segments[b].max() + 1)}
        assert found and found <= pieces


def test_a_base_that_does_not_fit_is_named(root, tmp_path):
    for change, said in (
        ("data.template={text}x", "data.template is '{text}x' here and"),
        ("lora.rank=21", r"lora\.rank=21 must be at most 20"),
        ("training.codebook_weights=1,2", "must have 4 numbers"),
    ):
        with pytest.raises(InputError, match=said):
            train(root, tmp_path / "run", change)


def test_text_that_is_given_has_no_weight():
    with pytest.raises(InputError, match=r"data\.text_weight = 0\.5: text\.given says that text is never predicted"):
        make_vocab({"codebooks": 2, "codebook_size": 4}, DataConfig(text_weight=0.5), text_given=True)
