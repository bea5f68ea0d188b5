"""The demo: four strategies on spoken digit strings, equal parameters and training FLOPs, one report.

    make demo        # audiolm compare --config demo --workdir runs/demo

Two CPU cores: ten minutes, installation included.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.codec.codebooks = 4
    config.corpus.update({"train": 1800, "valid": 60, "test": 60, "unseen": 0, "max_seconds": 6.0})
    config.data.update({"sequence_length": 1024, "batch_size": 4, "max_frames": 160})
    config.model.update({"layers": 4, "width": 192, "heads": 3, "kv_heads": 1, "head_width": 64, "ffn": 512})
    config.training.update({"steps": 150, "checkpoint_every": 50})
    return config
