import dataclasses
import json

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from audiolm_jax import config as configs
from audiolm_jax import runs
from audiolm_jax.data.config import DataConfig
from audiolm_jax.errors import InputError
from audiolm_jax.model.config import ModelConfig
from audiolm_jax.model.spec import Spec, from_json, upgrade
from audiolm_jax.serialization import SerializationConfig
from audiolm_jax.serialization.vocab import Vocab
from audiolm_jax.training import loop


@pytest.fixture(scope="module")
def config():
    sizes = {"corpus.train": 8, "corpus.valid": 2, "corpus.test": 2, "corpus.unseen": 1, "model.layers": 1}
    run = {"training.steps": 2, "training.probe_every": 2, "training.log_every": 1, "sampling.max_frames": 24}
    return configs.load("tiny", [f"{key}={value}" for key, value in {**sizes, **run}.items()])


def events(folder):
    """The records of a TensorBoard file: length (8 bytes), its checksum (4), the event, its checksum (4)."""
    for path in folder.rglob("events.out.tfevents*"):
        content, at = path.read_bytes(), 0
        while at < len(content):
            size = int(np.frombuffer(content, np.uint64, 1, at)[0])
            yield Event.FromString(content[at + 12 : at + 12 + size])
            at += 16 + size


class Split(list):
    """The heads of a split of tokens."""

    head = list.__getitem__


def test_the_speakers_of_the_training_are_named_if_the_template_names_them():
    source, named = (
        Split({"speaker": name} for name in ("bob", "ann", "", "bob")),
        DataConfig(template="{speaker}: {text}"),
    )
    assert runs.speakers(source, named) == ("ann", "bob") and runs.speakers(source, DataConfig()) == ()
    assert runs.speakers(Split({"speaker": str(n)} for n in range(runs.LISTED + 1)), named) == ()


def test_a_description_without_speakers_opens_and_one_with_them_comes_back():
    spec = Spec(ModelConfig(), Vocab(4, 16, 60), SerializationConfig(), speakers=("ann", "bob"))
    values = spec.to_json()
    assert from_json(values, "here") == spec
    del values["speakers"]
    assert from_json(values, "here") == dataclasses.replace(spec, speakers=())
    with pytest.raises(InputError, match=r"here: .*\(speakers must be a list of names\)"):
        from_json(values | {"speakers": "ann"}, "here")


@pytest.mark.parametrize("part", ["model", "vocab", "serialization", "data", "conditioning", "source", "text"])
@pytest.mark.parametrize("value", [None, 3, "x", [1]])
def test_a_section_that_is_none_is_one_sentence(part, value):
    values = Spec(ModelConfig(), Vocab(4, 16, 60), SerializationConfig()).to_json()
    with pytest.raises(InputError, match="here: the description of the model cannot be used"):
        from_json(values | {part: value}, "here")


@pytest.mark.parametrize("value", ["x", 0, None, []])
def test_whether_text_is_given_is_true_or_false(value):
    with pytest.raises(InputError, match="text_given"):
        Vocab(4, 16, 60, text_given=value)


@pytest.mark.parametrize("steps", [None, "3", [3]])
def test_steps_of_a_damaged_config_are_named(tmp_path, steps):
    ours = {"training": {"steps": 9}}
    (tmp_path / "config.json").write_text(json.dumps({"model": {}, "training": {"steps": steps}}))
    with pytest.raises(InputError, match=r"training\.steps is"):
        loop.claim(tmp_path, ours)


def test_biases_that_were_true_or_false():
    spec = Spec(ModelConfig(bias="all"), Vocab(4, 16, 60), SerializationConfig())
    values = spec.to_json()
    for old, new in ((True, "all"), (False, "none"), ("qkv", "qkv")):
        values["model"]["bias"] = old
        assert from_json(values, "here") == dataclasses.replace(spec, model=ModelConfig(bias=new))
        assert upgrade({**values, "seed": 3}, "here")["model"]["bias"] == new
        assert upgrade({"model": {"bias": old}}, "here") == {"model": {"bias": new}}


@pytest.mark.slow
def test_training_speaks_into_tensorboard(config, tmp_path):
    runs.prepare(config, tmp_path / "data", progress=False)
    runs.train(config, tmp_path / "data", tmp_path / "run", progress=False)
    found = {value.tag: (event.step, value) for event in events(tmp_path / "run") for value in event.summary.value}
    for tag in ("speech/0", "speech/1"):
        step, value = found[tag]
        assert step == 2 and value.audio.sample_rate == 16000 and value.audio.encoded_audio_string.startswith(b"RIFF")
        assert value.audio.length_frames % 640 == 0 and 0 < value.audio.length_frames <= 24 * 640
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert found["training/loss"][0] == 2 and found["training/loss"][1].simple_value == pytest.approx(lines[-1]["loss"])
