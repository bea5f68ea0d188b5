"""Everything once, small: a toy codec, a few digit strings, a model of 0.1 M parameters. It learns nothing to hear.

    audiolm compare --config tiny --workdir runs/tiny

Two CPU cores: about a minute, most of it compilation.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.corpus.update({"speakers": 2, "unseen_speakers": 1, "train": 24, "valid": 4, "test": 4, "unseen": 2})
    config.codec.update({"name": "tiny", "codebooks": 3})
    config.data.update({"sequence_length": 448, "batch_size": 8, "max_frames": 128})
    config.model.update({"layers": 2, "width": 64, "heads": 2, "kv_heads": 1, "head_width": 32, "ffn": 128})
    config.depth.update({"layers": 1, "width": 16, "heads": 2, "kv_heads": 2, "head_width": 8, "ffn": 24})
    config.evaluation.also = ("unseen",)
    config.optimizer.warmup = 2
    config.training.update({"steps": 12, "log_every": 2, "checkpoint_every": 4})
    return config
