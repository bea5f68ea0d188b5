"""Qwen3-TTS: every logit against `transformers`' Qwen3 over inputs that are summed here once more, prompts written out,
the tokenizer, files there and back, and what is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import audiolm_jax
from audiolm_jax.errors import InputError
from audiolm_jax.families import published
from audiolm_jax.model import losses, sharding
from audiolm_jax.sampling import requests
from audiolm_jax.serialization.documents import causal_row
from audiolm_jax.serialization.vocab import TEXT_START
from tests.helpers import published_qwen3_tts as small

torch = pytest.importorskip("torch", reason="the reference needs torch: pip install 'audiolm-jax[parity]'")
transformers = pytest.importorskip("transformers", reason="pip install 'audiolm-jax[parity]'")

Q, K = small.CODEBOOKS, small.CODES
SAID = {"text": "good morning, who is there", "language": "english", "speaker": "ryan", "instruction": "slow"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("qwen3_tts")
    small.write(path)
    return path


@pytest.fixture(scope="module")
def checkpoint(folder):
    return published.read(folder)


@pytest.fixture(scope="module")
def config(folder):
    return json.loads((folder / "config.json").read_text())


@pytest.fixture(scope="module")
def theirs(folder):
    return transformers.Qwen2TokenizerFast.from_pretrained(folder)


class Reference:
    """The talker and its code predictor, of `transformers`' Qwen3 and the tensors of a file."""

    def __init__(self, config, tensors):
        self.w = {name: torch.tensor(x) for name, x in tensors.items()}
        talker = config["talker_config"]
        self.talker = self.network("talker.model.", talker)
        self.predictor = self.network("talker.code_predictor.model.", talker["code_predictor_config"])

    def network(self, prefix, c):
        names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim")
        sizes = {name: c[name] for name in (*names, "num_key_value_heads", "rms_norm_eps")}
        rope = {"rope_type": "default", "rope_theta": c["rope_theta"]}
        made = transformers.Qwen3Config(vocab_size=1, rope_parameters=rope, attn_implementation="sdpa", **sizes)
        network = transformers.Qwen3Model(made).eval()
        state = {n.removeprefix(prefix): x for n, x in self.w.items() if n.startswith(prefix)}
        kept = {name: x for name, x in state.items() if name.startswith(("layers.", "norm."))}
        report = network.load_state_dict(kept, strict=False)
        assert report.missing_keys == ["embed_tokens.weight"] and not report.unexpected_keys
        return network

    def text(self, ids):
        x = self.w["talker.model.text_embedding.weight"][torch.tensor(ids)]
        for n in (1, 2):
            name = f"talker.text_projection.linear_fc{n}"
            x = x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]
            x = torch.nn.functional.silu(x) if n == 1 else x
        return x

    def frames(self, codes_TQ):
        """The code embeddings of frames, one by one [T, Q, D]."""
        names = ["talker.model.codec_embedding.weight"]
        names += [f"talker.code_predictor.model.codec_embedding.{q}.weight" for q in range(Q - 1)]
        return torch.stack([self.w[name][torch.tensor(codes_TQ[:, q])] for q, name in enumerate(names)], dim=1)

    def logits(self, prompt, beside, codes_TQ):
        """prompt: pairs (codec id or None, text id or None). -> (codebook 0 [T + 1, V], the others [T, Q - 1, K])."""
        codec = self.w["talker.model.codec_embedding.weight"]
        rows = [
            (0 if codec_id is None else codec[codec_id]) + (0 if text_id is None else self.text([text_id])[0])
            for codec_id, text_id in prompt
        ]
        beside = [beside[min(t, len(beside) - 1)] for t in range(len(codes_TQ))]
        embedded_TQD = self.frames(codes_TQ)
        x = torch.cat([torch.stack(rows), embedded_TQD.sum(1) + self.text(beside)])
        hidden = self.talker(inputs_embeds=x[None]).last_hidden_state[0, len(prompt) - 1 :]
        first = hidden @ self.w["talker.codec_head.weight"].T
        name = "talker.code_predictor.small_to_mtp_projection"
        before = torch.cat([hidden[:-1, None], embedded_TQD[:, :-1]], dim=1)
        if f"{name}.weight" in self.w:
            before = before @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]
        states = self.predictor(inputs_embeds=before).last_hidden_state[:, 1:]
        heads = torch.stack([self.w[f"talker.code_predictor.lm_head.{q}.weight"] for q in range(Q - 1)])
        return first, torch.einsum("tqd,qkd->tqk", states, heads)


def pairs_of(config, ids, text_first=False):
    """The prompt of SAID and the text beside the frames, in published ids, written out. ids: a tokenizer."""
    talker = config["talker_config"]
    pad, bos, end = (config[f"tts_{name}_token_id"] for name in ("pad", "bos", "eos"))
    mark = {name: talker[f"codec_{name}_id"] for name in ("pad", "bos", "think", "think_bos", "think_eos")}
    given = ids("<|im_start|>user\nslow<|im_end|>\n") + ids("<|im_start|>assistant\n")
    whole = ids(f"<|im_start|>assistant\n{SAID['text']}<|im_end|>\n<|im_start|>assistant\n")
    spoken = [*whole[3:-5], end]
    pairs = [(None, n) for n in given]
    control = [mark["think"], mark["think_bos"], talker["codec_language_id"]["english"], mark["think_eos"]]
    control += [talker["spk_id"]["ryan"], mark["pad"]]
    pairs += list(zip(control, [pad] * 5 + [bos], strict=True))
    if text_first:
        return pairs + [(mark["pad"], n) for n in spoken] + [(mark["bos"], pad)], [pad]
    return [*pairs, (mark["bos"], spoken[0])], [*spoken[1:], pad]


def ours(pairs, end):
    """Pairs in published ids as ours."""
    codec = [0 if c is None else 4 if c == end else TEXT_START + c - K for c, _ in pairs]
    return np.stack([codec, [0 if t is None else TEXT_START + t for _, t in pairs]], axis=1)


@pytest.mark.parametrize("text_first", [False, True])
def test_prompts_are_those_of_the_reference(checkpoint, config, theirs, text_first):
    given, beside = checkpoint.prompts.document(**SAID, text_first=text_first)
    pairs, rest = pairs_of(config, lambda text: theirs(text)["input_ids"], text_first)
    np.testing.assert_array_equal(given[1], ours(pairs, config["talker_config"]["codec_eos_token_id"]))
    np.testing.assert_array_equal(beside[1], TEXT_START + np.array(rest))


def test_a_dialect_is_spoken_unless_a_language_is_named(checkpoint, config):
    def languages(**asked):
        return checkpoint.prompts.document("who", **asked)[0][1][:, 0] - TEXT_START

    assert 2 in languages(speaker="dylan") and 2 in languages(speaker="Dylan", language="Chinese")
    assert 1 in languages(speaker="dylan", language="english") and 2 not in languages(speaker="ryan")


def test_a_transcript_comes_before_the_text(checkpoint):
    one, both = (checkpoint.prompts.document("who is", transcript=first)[1][1] for first in ("", "three one"))
    lengths = [len(checkpoint.text.encode(text)) for text in ("three one", "who is")]
    assert len(both) == len(one) + lengths[0]
    np.testing.assert_array_equal(both[lengths[0] :], one)


def test_the_tokenizer_is_that_of_its_files(checkpoint, theirs):
    for text in ("good morning!", "  it's 42,  no\n\nlines ", "Ünïcode 世界 <|im_start|>user\nx<|im_end|>"):
        np.testing.assert_array_equal(checkpoint.text.encode(text) - TEXT_START, theirs(text)["input_ids"])


@pytest.fixture(scope="module")
def scored():
    """Log-probabilities of a row by ours: [L, Q]."""

    @jax.jit
    def run(model, batch, vocab_of):
        names = ("tokens_BLS", "positions_BL", "segments_BL")
        hidden_BLD = model(*(batch[name] for name in names))
        parts = losses.scored(model, hidden_BLD, batch, vocab_of.value, jax.random.key(0), 1.0)
        return jnp.concatenate([part.logprob_BLS for part in parts], axis=-1)[0]

    def score(published, document):
        spec, model = published.spec, published.model
        row = causal_row(document, spec.grid, spec.vocab)
        with jax.set_mesh(sharding.single_device_mesh()):
            batch = {f"{name}_BLS": row[name][None] for name in ("tokens", "targets", "heads", "weights")}
            batch |= {"positions_BL": row["positions"][None], "segments_BL": np.ones_like(row["positions"])[None]}
            return np.asarray(run(model, batch, Static(spec.vocab)))

    return score


@jax.tree_util.register_static
class Static:
    def __init__(self, value):
        self.value = value

    def __eq__(self, other):
        return self.value == other.value

    def __hash__(self):
        return hash(self.value)


@pytest.mark.parametrize("kind", ["text beside", "text first", "equal widths"])
def test_every_logit_is_that_of_the_reference(kind, folder, checkpoint, config, theirs, scored, tmp_path):
    """Frames longer and shorter than the text beside them; a code predictor of another and of the same width."""
    if kind == "equal widths":
        small.write(tmp_path, predictor_width=20)
        folder, checkpoint = tmp_path, published.read(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
    codes_TQ = np.random.default_rng(3).integers(0, K, (3 if kind == "equal widths" else 30, Q))
    document = checkpoint.prompts.document(**SAID, text_first=kind == "text first")
    found_LQ = scored(checkpoint, (*document, ("audio", codes_TQ)))
    pairs, beside = pairs_of(config, lambda text: theirs(text)["input_ids"], kind == "text first")
    with torch.no_grad():
        reference = Reference(config, load_file(folder / "model.safetensors"))
        first, others = reference.logits(pairs, beside, codes_TQ)
    end, last = config["talker_config"]["codec_eos_token_id"], len(pairs) - 1
    or_end = first[:, [*range(K), end]].log_softmax(-1)
    expected = or_end[np.arange(len(codes_TQ)), codes_TQ[:, 0]].numpy()
    expected[0] = first[0, :K].log_softmax(-1)[codes_TQ[0, 0]]  # no audio is empty
    np.testing.assert_allclose(found_LQ[last : last + len(codes_TQ), 0], expected, atol=1e-4)
    np.testing.assert_allclose(found_LQ[last + len(codes_TQ), 0], or_end[-1, K], atol=1e-4)
    expected = others.log_softmax(-1).gather(-1, torch.tensor(codes_TQ[:, 1:, None]))[..., 0]
    np.testing.assert_allclose(found_LQ[last : last + len(codes_TQ), 1:], expected, atol=1e-4)
    assert not found_LQ[:last].any() and not found_LQ[last + len(codes_TQ), 1:].any()


def test_sampling_takes_the_codes_that_the_whole_pass_prefers(folder, checkpoint, config, theirs):
    """Greedy steps with a cache, past the end of the text; the first frames of one row are a recording's."""
    generator = checkpoint.generator()
    options = {"temperature": 0.0, "repetition_penalty": (1.0,), "frames": 28, "speakers": "ryan"}
    request = generator.request(
        SAID["text"],
        language="english",
        instruction="slow",
        speaker="ryan",
        text_first=False,
        **{name: options[name] for name in ("temperature", "repetition_penalty", "frames")},
    )
    [result] = generator.run([request])
    pairs, beside = pairs_of(config, lambda text: theirs(text)["input_ids"])
    assert len(beside) < 28 == len(result.codes_TQ)
    with torch.no_grad():
        reference = Reference(config, load_file(folder / "model.safetensors"))
        first, others = reference.logits(pairs, beside, result.codes_TQ)
    np.testing.assert_array_equal(first[:-1, :K].argmax(-1), result.codes_TQ[:, 0])
    np.testing.assert_array_equal(others.argmax(-1), result.codes_TQ[:, 1:])
    assert generator.sampling.repetition_penalty == (1.05, 1.0, 1.0) and generator.sampling.min_frames == 2


@pytest.mark.parametrize("kind", ["custom_voice", "base"])
def test_files_come_back_as_they_were(kind, tmp_path):
    tensors = small.write(tmp_path / "published", kind)
    published.import_run(tmp_path / "published", tmp_path / "run")
    published.export_run(tmp_path / "run", tmp_path / "exported")
    found = load_file(tmp_path / "exported" / "model.safetensors")
    assert found.keys() == tensors.keys()
    assert all(np.array_equal(found[name], tensors[name]) for name in tensors)
    for path in (tmp_path / "published").rglob("*"):
        if path.is_file() and path.name != "model.safetensors":
            copy = tmp_path / "exported" / path.relative_to(tmp_path / "published")
            assert (
                json.loads(copy.read_text()) == json.loads(path.read_text())
                if path.suffix == ".json"
                else (copy.read_bytes() == path.read_bytes())
            )
    assert audiolm_jax.load(tmp_path / "run").text.size == published.read(tmp_path / "exported").text.size


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"languages": "klingon"}, r"no language 'klingon'; it has auto, chinese, english"),
        ({"languages": "beijing_dialect"}, "no language 'beijing_dialect'"),
        ({"speakers": "ryam"}, r"no speaker 'ryam'; did you mean ryan\? it has dylan, ryan"),
        ({"text": " "}, "has no pieces; give words"),
        ({"audio": np.zeros((4, Q), int), "prompt_texts": "who"}, "model of kind 'custom_voice'; base is"),
        ({"prompt_texts": "who"}, "a transcript to speak like was given without a recording"),
        ({"instructions": "a\x07b"}, "the instruction .* holds control characters"),
        ({"guidance": 3.0}, "sampling.guidance is 3.0; this model was never trained without its text"),
        ({"text_first": "yes"}, "text_first is 'yes' .*; it must be True or False"),
        ({"melody": np.zeros(9)}, "melody was given, but this model takes none"),
    ],
)
def test_requests_that_cannot_be_met_are_one_sentence(checkpoint, options, words):
    generator = checkpoint.generator()
    with pytest.raises(InputError, match=words) as caught:
        generator.generate(**{"text": "who is there", **options})
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path = tmp_path_factory.mktemp("base")
    small.write(path, "base")
    return published.read(path).generator()


@pytest.mark.parametrize("text_first", [False, True])
def test_the_frames_of_a_recording_come_with_the_text_of_a_training_row(base, text_first):
    """Fewer and more frames than there is text."""
    codes_TQ = np.random.default_rng(5).integers(0, K, (40, Q)).astype(np.int32)
    for frames in (2, 30):
        asked = {"prompt_text": "three one four", "text_first": text_first, "frames": 40}
        request = base.request("who is there", audio=codes_TQ[:frames], **asked)
        prompt = requests.causal_prompt(request, base.grid, base.vocab)["tokens"]
        whole = causal_row((*request.document, ("audio", codes_TQ)), base.grid, base.vocab)["tokens"]
        np.testing.assert_array_equal(prompt, whole[: len(prompt)])
        beside_BX = requests.beside([request], base.grid)
        later = whole[len(prompt) :, -1]
        np.testing.assert_array_equal(beside_BX[0][np.minimum(np.arange(frames, 41), beside_BX.shape[1] - 1)], later)


def test_a_base_model_needs_the_transcript_of_a_recording(base):
    with pytest.raises(InputError, match="a recording to speak like was given without its transcript; give both"):
        base.generate("who", audio=np.zeros((4, Q), int))
    with pytest.raises(InputError, match="an instruction was given, but this model was not trained with any"):
        base.generate("who", instructions="slow")
    with pytest.raises(InputError, match="no speaker 'ryan'; it has none"):
        base.generate("who", speakers="ryan")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_code_groups": 4}, "the talker has 4 codebooks of 32 codes, its codec 3 of 32"),
        ({"codec_bos_id": 7}, r"codec_bos_id=7; codec ids are 32..52 after 32 codes, text ids 0..339"),
        ({"codec_bos_id": None}, "lacks talker_config.codec_bos_id, or a usable number"),
        ({"spk_id": {"ryan": "x"}}, "spk_id.ryan='x'; codec ids are 32..52"),
        ({"attention_bias": True}, "talker_config.attention_bias=True is not supported"),
        ({"text_vocab_size": 300}, "tts_pad_token_id="),
        ({"vocab_size": 60}, r"talker.model.codec_embedding.weight is \(53, 20\) where \(60, 20\) is needed"),
    ],
)
def test_configurations_that_do_not_fit_are_one_sentence(folder, config, tmp_path, changes, words):
    for path in folder.iterdir():
        if path.name != "config.json":
            (tmp_path / path.name).symlink_to(path)
    fields = config | {"talker_config": config["talker_config"] | changes}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(InputError, match=words) as caught:
        published.read(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_that_is_not_there_is_named(folder, tmp_path):
    for path in folder.iterdir():
        if path.name != "merges.txt":
            (tmp_path / path.name).symlink_to(path)
    with pytest.raises(InputError, match=r"lacks merges.txt, of which its tokenizer is made"):
        published.read(tmp_path)
