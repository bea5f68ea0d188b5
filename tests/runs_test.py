import json

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from audiolm_jax import config as configs
from audiolm_jax import runs


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
