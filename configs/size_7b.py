"""7.06 G parameters: 32 layers of width 4096 (the backbone of Llama 3 8B), gated, 8 key/value heads.

PLAN_7b
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.codec.codebooks = 8
    config.model.update(
        {"layers": 32, "width": 4096, "heads": 32, "kv_heads": 8, "head_width": 128, "ffn": 14336, "remat": True}
    )
    config.data.update({"sequence_length": 1024, "batch_size": 4, "drop_long": True})
    config.sharding.preset = "fsdp"
    config.optimizer.update({"learning_rate": 2e-4, "warmup": 1000, "b2": 0.95, "weight_decay": 0.1})
    config.training.update({"steps": 200000, "log_every": 50, "checkpoint_every": 1000, "keep": 2})
    return config
