"""A run whose texts are pieces, from recordings to speech: every part of it takes the tokenizer that was trained."""

import numpy as np
import pytest
import soundfile

from audiolm_jax import config as configs
from audiolm_jax import loading, runs
from audiolm_jax.data import batches, tokens
from audiolm_jax.errors import InputError
from audiolm_jax.evaluation import evaluate
from audiolm_jax.evaluation.config import EvaluationConfig
from audiolm_jax.model import checkpoints
from audiolm_jax.model.config import ShardingConfig
from audiolm_jax.sampling.generator import Generator
from audiolm_jax.serialization import pieces
from audiolm_jax.serialization.vocab import HEAD_TEXT, TEXT_START

SIZE = 262
KEYS = f"""
    text.vocabulary=pieces text.size={SIZE} corpus.name=folder corpus.test_fraction=.4 serialization.strategy=delay
    data.sequence_length=64 data.batch_size=8 data.text_weight=.5 data.drop_text=0 training.steps=1 training.log_every=1
    model.layers=1 model.width=16 model.heads=1 model.head_width=8 model.ffn=16"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(the folder of everything, the configuration)"""
    root = tmp_path_factory.mktemp("pieces")
    (root / "speech").mkdir()
    rng = np.random.default_rng(0)
    for number in range(8):
        wave = np.sin(np.arange(8000) * (0.05 + 0.01 * number)) * (0.3 + 0.1 * rng.random(8000))
        soundfile.write(root / "speech" / f"{number}.wav", wave, 16000)
        (root / "speech" / f"{number}.txt").write_text("seven eight nine" if number % 2 else "nine eighty seven")
    config = configs.load("tiny", [*KEYS.split(), f"corpus.path={root / 'speech'}"])
    runs.prepare(config, root / "data", progress=False)
    runs.train(config, root / "data", root / "run", progress=False)
    return root, config


def test_the_run_keeps_what_was_trained_on_the_texts_to_train_on(made):
    root, _ = made
    spec, mine = checkpoints.read_spec(root / "run"), pieces.trained(root / "data", SIZE)
    assert spec.text == mine.spec and spec.vocab.text_size == SIZE and spec.vocab.code_start == TEXT_START + SIZE
    assert pieces.of_model(spec.text, root / "run") == mine
    source = tokens.open_split(root / "data" / "tokens", "train", text=mine)
    rows = batches.training_batches(source, spec.data, spec.grid, spec.vocab, seed=0)
    batch = next(rows)
    rows.close()
    said = batch["targets_BLS"][(batch["heads_BLS"] == HEAD_TEXT) & (batch["targets_BLS"] >= TEXT_START)]
    one = mine.encode(source.head(0)["text"])
    assert 0 < len(one) < 16 and set(said) <= {*mine.encode("seven eight nine"), *mine.encode("nine eighty seven")}
    with pytest.raises(InputError, match="tokens and section data need"):
        batches.training_batches(
            tokens.open_split(root / "data" / "tokens", "train"), spec.data, spec.grid, spec.vocab, seed=0
        )


def test_likelihood_export_and_speech_take_it(made, tmp_path):
    root, _ = made
    found = evaluate.bits(root / "run", root / "data", EvaluationConfig(), ShardingConfig())
    assert found["bits_per_second"] > 0
    checkpoints.export_safetensors(root / "run", tmp_path / "run.safetensors")
    [one, two] = (loading.load(source) for source in (root / "run", tmp_path / "run.safetensors"))
    mine = pieces.trained(root / "data", SIZE)
    for generator in (one, two):
        [(kind, ids)] = generator.request("nine eight", frames=3).document
        assert kind == "text" and (ids == mine.encode("nine eight")).all()
    assert two.generate("nine eight", frames=3).codes_TQ.shape == (3, 3)
    bare = Generator(one.model, checkpoints.read_spec(root / "run"), one.codec)
    with pytest.raises(InputError, match="the model was trained on pieces of the tokenizer with sha256"):
        bare.request("nine eight", frames=3)


def test_another_tokenizer_is_refused(made, tmp_path):
    root, _ = made
    pieces.train(["other words"], tmp_path, 257)
    other = tmp_path / "tokens" / "pieces-257.json"
    options = [f"text.path={other}", "text.size=0"]
    changed = configs.load("tiny", [*KEYS.split(), f"corpus.path={root / 'speech'}", *options])
    with pytest.raises(InputError, match=r"is the run of another config: .*text.fingerprint is"):
        runs.train(changed, root / "data", root / "run", progress=False)
    with pytest.raises(InputError, match="its texts are of another vocabulary"):
        again = configs.load("tiny", [*KEYS.split(), f"training.init_from={root / 'run'}", *options])
        runs.train(again, root / "data", tmp_path / "run", progress=False)
