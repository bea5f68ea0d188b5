"""The demo: four strategies on spoken digit strings, equal parameters and training FLOPs, one report.

    make demo        # audiolm compare --config demo --workdir runs/demo

Two CPU cores: ten minutes, installation included.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.codec.codebooks = 4  # 100 codes a second
    # Digit strings last 0.7 to 2.5 seconds: no row of `flat` is longer than 300 positions.
    config.corpus.update({"train": 1800, "valid": 60, "test": 60, "unseen": 0, "max_seconds": 3.8})
    config.data.update({"sequence_length": 512, "batch_size": 4, "max_frames": 96})
    config.model.update({"layers": 4, "width": 192, "heads": 3, "kv_heads": 1, "head_width": 64, "ffn": 512})
    config.training.update({"steps": 100, "log_every": 5, "checkpoint_every": 50})
    config.evaluation.update({"timed": 2, "repeats": 2})
    return config
