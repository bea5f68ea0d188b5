"""1.55 G parameters, 32 layers of width 2048, gated, 8 key/value heads. For a pod: v5e-256,
v6e-256, v5p-128 and more.

    audiolm plan --config size_1b5 --topology v5e-256
    tpu/run.sh train --config size_1b5 --data bucket/data --workdir bucket/runs/mine

What is planned is in docs/plans.md; the keys for Mimi and EnCodec are in size_300m.py.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.codec.codebooks = 8
    config.model.update(
        {"layers": 32, "width": 2048, "heads": 16, "kv_heads": 8, "head_width": 128, "ffn": 5632, "remat": True}
    )
    config.depth.update({"layers": 6, "width": 1024, "heads": 16, "kv_heads": 8, "head_width": 64, "ffn": 2816})
    config.data.update({"sequence_length": 1024, "batch_size": 512, "drop_long": True})
    config.sharding.preset = "fsdp"
    config.optimizer.update({"learning_rate": 3e-4, "warmup": 1000, "b2": 0.95, "weight_decay": 0.1})
    config.training.update({"steps": 150000, "log_every": 50, "checkpoint_every": 1000, "keep": 2})
    return config
