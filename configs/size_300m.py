"""321 M parameters: the decoder of MusicGen-small without its cross-attention, 24 layers of width 1024.

PLAN_300m
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.codec.codebooks = 8
    config.model.update(
        {"layers": 24, "width": 1024, "heads": 16, "kv_heads": 16, "head_width": 64, "ffn": 4096, "mlp": "plain"}
    )
    config.data.update({"sequence_length": 1024, "batch_size": 16, "drop_long": True})
    config.sharding.preset = "fsdp"
    config.optimizer.update({"learning_rate": 4e-4, "warmup": 1000, "b2": 0.95, "weight_decay": 0.1})
    config.training.update({"steps": 100000, "log_every": 50, "checkpoint_every": 1000, "keep": 2})
    return config
