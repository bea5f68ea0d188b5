"""The demo: five strategies on spoken digit strings, equal parameters and training FLOPs, one report.

    make demo        # audiolm compare --config demo --workdir runs/demo

Two CPU cores: ten minutes, installation included.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.compare.strategies = ("flat", "delay", "depth", "hierarchical", "masked")
    config.codec.codebooks = 4  # 100 codes a second
    # Digit strings last 0.7 to 2.5 seconds: no row of `flat` is longer than 300 positions.
    config.corpus.update({"speakers": 4, "train": 1800, "valid": 60, "test": 60, "unseen": 0, "max_seconds": 3.8})
    config.data.update({"sequence_length": 512, "batch_size": 4, "max_frames": 96, "template": "{speaker}: {text}"})
    # In a minute of two cores a small model that sees much beats a large one that sees little.
    config.model.update({"layers": 3, "width": 128, "heads": 2, "kv_heads": 1, "head_width": 64, "ffn": 384})
    config.depth.update({"layers": 1, "width": 64, "heads": 2, "kv_heads": 2, "head_width": 32, "ffn": 176})
    config.optimizer.update({"learning_rate": 4e-3})
    # Half of the rows of hierarchical and masked start without a prompt, as the evaluation does.
    config.serialization.prompt_fraction = 0.5
    config.training.update({"steps": 260, "log_every": 10, "checkpoint_every": 130})
    config.evaluation.update({"timed": 2, "repeats": 2})
    return config
