"""The surface: streaming, prompts, errors, checkpoints, with the tiny codec and small random models."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from flax import nnx

from audiolm_jax import codecs, loading
from audiolm_jax.audio import resample
from audiolm_jax.data import examples
from audiolm_jax.errors import InputError
from audiolm_jax.model import checkpoints, sharding
from audiolm_jax.model.config import DepthConfig, ModelConfig
from audiolm_jax.model.spec import CodecSpec, Spec
from audiolm_jax.model.transformer import Transformer, language_model
from audiolm_jax.sampling import SamplingConfig, causal, performance
from audiolm_jax.sampling.generator import Generator
from audiolm_jax.serialization import STRATEGIES, SerializationConfig, cost, documents
from audiolm_jax.serialization.vocab import TEXT_APART, TEXT_START, Vocab

VOCAB = Vocab(4, 16, 60)
MODEL = ModelConfig(layers=1, width=32, heads=2, kv_heads=1, head_width=16, ffn=32)
DEPTH = DepthConfig(layers=1, width=16, heads=2, kv_heads=1, head_width=8, ffn=24)
CODEC = codecs.load("tiny")
HOP = CODEC.hop


@functools.cache
def model(depth=False):
    return language_model(dataclasses.replace(MODEL, depth=DEPTH if depth else None), VOCAB, nnx.Rngs(0))


@functools.cache
def generator(strategy="delay", **options):
    iterations = {"iterations": (3, 2, 1, 1)} if strategy == "masked" else {}
    own = model(strategy == "depth")
    spec = Spec(own.config, VOCAB, SerializationConfig(strategy=strategy, **iterations))
    sampling = SamplingConfig(**{"chunk": 12, "max_frames": 30, **options})
    return Generator(own, spec, CODEC, sampling, context=200)


def codes(frames, seed=0):
    return np.random.default_rng(seed).integers(0, 16, (frames, 4)).astype(np.int32)


def collect(stream):
    chunks = []
    while True:
        try:
            chunks.append(next(stream))
        except StopIteration as finished:
            return chunks, finished.value


@pytest.mark.parametrize(
    "dirty", ["one two\nthree", "one\ttwo  three", "one\u00a0two three", "\ufeffone two\u200b three\n"]
)
def test_what_is_typed_is_cleaned_as_what_was_prepared(dirty):
    def ids(typed, **options):
        return generator().request(typed, frames=5, **options).document[0][1]

    np.testing.assert_array_equal(ids(dirty), ids("one two three"))
    np.testing.assert_array_equal(ids("three", prompt_text=f" {dirty}\n"), ids("one two three three"))
    for bad, said in (("\u200b \n", "the text is empty"), ("one\x00", "control characters")):
        with pytest.raises(InputError, match=said):
            ids(bad)


@pytest.mark.parametrize(
    "strategy", [pytest.param("flat", marks=pytest.mark.slow), *(s for s in STRATEGIES if s != "flat")]
)
def test_streaming_equals_generating_bit_for_bit(strategy):
    options = {"frames": [25, None], "prompts": [None, codes(3)], "seeds": [3, 4]}
    chunks, streamed = collect(generator(strategy).stream(["three one", "four"], **options))
    whole = generator(strategy).generate(["three one", "four"], **options)
    for b, (one, other) in enumerate(zip(whole, streamed, strict=True)):
        joined = np.concatenate([chunk[b] for chunk in chunks])
        assert joined.tobytes() == one.waveform.tobytes() == other.waveform.tobytes()
        np.testing.assert_array_equal(one.codes_TQ, other.codes_TQ)
        # And both are what the codec makes of the codes, without the frames of the prompt.
        alone = CODEC.decode(one.codes_TQ)[one.prompt_frames * HOP :]
        np.testing.assert_array_equal(one.waveform, alone)
    assert len(whole[0].codes_TQ) == 25 and not whole[0].ended and whole[0].sample_rate == 16000
    grid = generator(strategy).grid
    progressive = grid.causal_levels == grid.codebooks and cost.look_ahead(grid, 25) < 24
    assert (len([c for c in chunks if len(c[0])]) > 1) == progressive or strategy == "coarse_first"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_passes_are_those_of_the_cost_model(strategy):
    own = generator(strategy)
    [request] = own.requests(["three one"], frames=6)
    [result] = own.run([request])
    prompt = len(documents.prompt_row(request.document, own.grid, VOCAB, causal=False)["tokens"])
    assert result.passes == cost.cost(own.grid, 6, prompt, own.model.config, VOCAB).passes


def test_defect_11_a_prompt_is_kept_counted_and_decoded_once():
    own, prompt_TQ = generator(), codes(5)
    [without] = own.generate(["a"], prompts=[prompt_TQ], frames=9)
    [with_] = own.generate(["a"], prompts=[prompt_TQ], frames=9, include_prompt=True)
    assert len(without.codes_TQ) == 9 and without.prompt_frames == 5
    np.testing.assert_array_equal(without.codes_TQ[:5], prompt_TQ)
    assert len(without.waveform) == 4 * HOP and len(with_.waveform) == 9 * HOP
    np.testing.assert_array_equal(with_.waveform[5 * HOP :], without.waveform)
    np.testing.assert_array_equal(with_.waveform[: 5 * HOP], CODEC.decode(prompt_TQ))


def test_a_waveform_prompt_is_its_codes_and_its_text_comes_first():
    own = generator()
    waveform = (0.3 * np.sin(np.arange(4 * HOP) * 0.05)).astype(np.float32)
    [heard] = own.requests(["two"], prompts=[waveform], prompt_texts=["one"], frames=9)
    [read] = own.requests(["one two"], prompts=[CODEC.encode(waveform)], frames=9)
    np.testing.assert_array_equal(heard.prompt_TQ, read.prompt_TQ)
    np.testing.assert_array_equal(heard.document[0][1], read.document[0][1])


def test_a_row_is_the_same_alone_and_in_a_batch():
    own = generator()
    batch = own.generate(["one", "two three", "four"], frames=[5, None, 12], prompts=[None, codes(2), None])
    [alone] = own.generate(["two three"], prompts=[codes(2)], seeds=[1])
    np.testing.assert_array_equal(batch[1].codes_TQ, alone.codes_TQ)
    assert batch[1].waveform.tobytes() == alone.waveform.tobytes()


def test_seconds_are_frames_of_the_codec():
    [result] = generator().generate(["one"], seconds=0.4)
    assert len(result.codes_TQ) == 10 and len(result.waveform) == 16000 * 0.4


def test_weights_are_copied_so_that_training_may_go_on():
    own = generator()
    ours = {id(x) for x in jax.tree.leaves(own.model)}
    assert not ours & {id(x) for x in jax.tree.leaves(model())}
    pointers = {x.unsafe_buffer_pointer() for x in jax.tree.leaves(own.model)}
    assert not pointers & {x.unsafe_buffer_pointer() for x in jax.tree.leaves(model())}


def test_a_model_trained_on_several_devices_is_decoded_on_one():
    with jax.set_mesh(sharding.make_mesh()):
        spread = Transformer(MODEL, VOCAB.size, nnx.Rngs(0), sharding.PRESETS["fsdp"])
        spec = Spec(MODEL, VOCAB, SerializationConfig(strategy="delay"))
        own = Generator(spread, spec, CODEC, SamplingConfig(chunk=12, max_frames=30))
        [result] = own.generate(["one"], frames=5)
    [expected] = generator().generate(["one"], frames=5)
    np.testing.assert_array_equal(result.codes_TQ, expected.codes_TQ)


def test_compute_dtype_is_cast_once():
    config = ModelConfig(layers=1, width=32, heads=2, kv_heads=1, head_width=16, ffn=32, dtype="bfloat16")
    own = performance.for_decoding(Transformer(config, VOCAB.size, nnx.Rngs(0)), sharding.single_device_mesh(), VOCAB)
    assert own.layers[0].up_DCF[...].dtype == own.unembedding_DV[...].dtype == jax.numpy.bfloat16
    assert own.layers[0].ffn_norm.scale[...].dtype == own.embedding_VD[...].dtype == jax.numpy.float32


@pytest.mark.parametrize("tied", [False, True])
def test_decoding_computes_no_logits_of_many_pieces(tied):
    """Those of audio are the same, whether the output matrix is the table or another one."""
    vocab = Vocab(3, 7, 5, text_size=TEXT_APART + 1)
    config = ModelConfig(layers=1, width=32, heads=2, kv_heads=1, head_width=16, ffn=32, tied=tied)
    whole = Transformer(config, vocab.size, nnx.Rngs(0))
    own = performance.for_decoding(whole, sharding.single_device_mesh(), vocab)
    hidden_BD = jax.random.normal(jax.random.key(0), (2, 32))
    every, few = (np.asarray(model.logits(hidden_BD)) for model in (whole, own))
    assert few.shape == (2, vocab.without_text.size) and every.shape == (2, vocab.size)
    np.testing.assert_allclose(few[:, vocab.without_text.code_start :], every[:, vocab.code_start :], atol=1e-5)
    np.testing.assert_allclose(few[:, :TEXT_START], every[:, :TEXT_START], atol=1e-5)
    tokens_BS = np.array([[vocab.length_start], [TEXT_START + TEXT_APART]])
    np.testing.assert_array_equal(own.embed(tokens_BS), whole.embed(tokens_BS))


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ([], {}, "no text was given"),
        (["  "], {}, "the text is empty"),
        (["a"], {"frames": 0}, "0 frames were asked for; a segment has 1..30"),
        (["a"], {"frames": 31}, "31 frames were asked for"),
        (["a"], {"seconds": 0.0}, "0.0 seconds were asked for"),
        (["a"], {"seconds": float("nan")}, "nan seconds were asked for"),
        (["a"], {"seconds": 1.0, "frames": 2}, "both frames and seconds"),
        (["a", "b"], {"seeds": [1]}, "1 seeds were given for 2 texts"),
        (["a"], {"prompts": [codes(30)]}, "the prompt has 30 frames and the segment 30"),
        (["a"], {"prompts": [codes(2) + 10]}, "is out of range"),
        (["a"], {"prompts": [codes(2)[:, :3]]}, "it must be \\[frames, 4\\]"),
        (["a"], {"prompts": [np.zeros((2, 2), np.float32)]}, "a waveform is \\[samples\\]"),
        (["a"], {"prompts": [np.full(HOP, np.nan, np.float32)]}, "NaN"),
        (["a" * 400], {}, "and one frame more take 406 positions; the context of this model has 200"),
        (["a"], {"sampling": SamplingConfig(top_k=(1, 2))}, "sampling.top_k is \\(1, 2\\)"),
    ],
)
def test_bad_input_is_named_in_one_sentence(texts, options, message):
    with pytest.raises(InputError, match=message):
        generator().generate(texts, **options)


def test_a_prompt_alone_is_continued_and_a_speech_model_refuses_text():
    [result] = generator().generate([""], prompts=[codes(2)], frames=5)
    assert len(result.codes_TQ) == 5
    spec = Spec(MODEL, VOCAB, SerializationConfig(), data=examples.DataConfig(template=""))
    silent = Generator(model(), spec, CODEC)
    assert silent.requests([""])[0].document == ()
    with pytest.raises(InputError, match="trained without text"):
        silent.requests(["hello"])


def test_a_codec_of_other_codes_is_refused():
    with pytest.raises(InputError, match="the codec has 4 codebooks of 16 codes; this model needs 4 of 32"):
        Generator(model(), Spec(MODEL, Vocab(4, 32, 60), SerializationConfig()), CODEC)


def save_run(workdir, fingerprint=CODEC.fingerprint, speakers=()):
    spec = Spec(
        MODEL,
        VOCAB,
        SerializationConfig("delay", delays=(0, 1, 1, 2)),
        data=examples.DataConfig(template="{speaker}: {text}", sequence_length=99),
        codec=CodecSpec("tiny", None, 4, fingerprint),
        speakers=speakers,
    )
    with checkpoints.manager(workdir) as opened:
        checkpoints.save(opened, 7, checkpoints.params_of(model()), {"step": np.int32(7)}, {}, spec)


def test_load_reads_a_run_and_an_exported_file(tmp_path):
    save_run(tmp_path / "run")
    own = loading.load(tmp_path / "run", SamplingConfig(chunk=12, max_frames=30))
    assert own.grid.config.delays == (0, 1, 1, 2) and own.context == 99
    assert own.requests(["hi"], speakers="ann")[0].document[0][1].size == len("ann: hi")
    [result] = own.generate(["hi"], frames=5)
    checkpoints.export_safetensors(tmp_path / "run", tmp_path / "model.safetensors")
    [again] = loading.load(tmp_path / "model.safetensors", SamplingConfig(chunk=12, max_frames=30)).generate(
        ["hi"], frames=5
    )
    np.testing.assert_array_equal(result.codes_TQ, again.codes_TQ)


def test_load_refuses_a_speaker_that_was_not_in_the_training(tmp_path):
    save_run(tmp_path / "run", speakers=("belinda", "mr-serious"))
    own = loading.load(tmp_path / "run")
    assert own.speakers == ("belinda", "mr-serious") and "belinda, mr-serious" in own._repr_html_()
    with pytest.raises(InputError, match="no speaker 'belina' was in the training; did you mean belinda"):
        own.generate("hi", speakers="belina", frames=5)
    with pytest.raises(InputError, match="its 2 names are belinda, mr-serious"):
        own.requests(["a", "b"], speakers=["belinda", "x"])
    assert len(own.requests(["a", "b"], speakers=["belinda", ""])) == 2
    save_run(tmp_path / "old")
    assert loading.load(tmp_path / "old").requests(["a"], speakers="anyone")


def test_sampling_options_are_those_of_a_sampling_config():
    own = generator()
    options = {"temperature": (0.5,), "top_k": (3,), "guidance": 1.5}
    [whole] = own.generate(["one"], frames=9, sampling=SamplingConfig(chunk=12, max_frames=30, **options))
    plain = own.generate("one", frames=9, temperature=0.5, top_k=3, guidance=1.5)
    np.testing.assert_array_equal(whole.codes_TQ, plain.codes_TQ)
    assert (own.generate("one", frames=9).codes_TQ != plain.codes_TQ).any()
    few = own.generate("one", frames=9, suppressed=(tuple(range(2, 16)),), repetition_penalty=(1.3, 1, 1, 1))
    assert few.codes_TQ.max() == 1 and "suppressed ((0, 1, 2, 3, 4, 5, ...),)" in repr(
        generator(suppressed=(tuple(range(15)),))
    )
    assert own.request("one", temperature=0.5).sampling.temperature == (0.5,)


def test_a_generator_shows_what_it_is():
    shown = repr(generator())
    size = sum(x.size for x in jax.tree.leaves(model()))
    for part in ("strategy: delay", "1 layers of width 32", f"parameters: {size:,}", "tiny, 16000 Hz", "chunk 12"):
        assert part in shown and part.rpartition(": ")[2] in generator()._repr_html_()


def test_a_recording_with_its_rate_is_the_prompt_at_the_rate_of_the_codec():
    own, x = generator(), (0.3 * np.sin(np.arange(4 * HOP * 3) * 0.02)).astype(np.float32)
    [heard] = own.requests(["two"], prompts=[(np.stack([x, x], axis=1), 3 * CODEC.sample_rate)], frames=9)
    np.testing.assert_array_equal(heard.prompt_TQ, CODEC.encode(resample(x, 48000, 16000)))
    assert own.generate("two", audio=(x, 48000), frames=9).prompt_frames == 4


def test_load_refuses_another_codec_and_a_folder_that_is_no_run(tmp_path):
    save_run(tmp_path, fingerprint="0" * 64)
    with pytest.raises(InputError, match="trained on codes of codec 'tiny' with fingerprint 000000000000"):
        loading.load(tmp_path)
    with pytest.raises(InputError, match="is not the folder of a training run"):
        loading.load(tmp_path / "nothing")


def test_defect_12_a_second_call_compiles_nothing():
    own = generator()
    own.generate(["one"], frames=5)
    before = causal.chunk_program()._cache_size(), causal.prefill._cache_size()
    own.generate(["other"], frames=[9], seeds=[8], sampling=SamplingConfig(chunk=12, max_frames=30, temperature=(0.2,)))
    assert (causal.chunk_program()._cache_size(), causal.prefill._cache_size()) == before
