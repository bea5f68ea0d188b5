"""127 M parameters, 16 layers of width 768: a machine of 8 chips or GPUs (v5e-8, v6e-8, h100:8).

    audiolm train --config size_120m --data data/mine --workdir runs/mine
    audiolm plan --config size_120m --topology v5e-8

Planned on v5e-8 (64 rows of 1024 positions): the train step needs 11.4 of 15.75 GiB per chip and at least 35.3 ms,
bound by compute. The keys for Mimi and EnCodec are in size_300m.py.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.codec.codebooks = 8
    config.model.update(
        {"layers": 16, "width": 768, "heads": 12, "kv_heads": 12, "head_width": 64, "ffn": 3072, "mlp": "plain"}
    )
    config.depth.update({"layers": 3, "width": 384, "heads": 6, "kv_heads": 2, "head_width": 64, "ffn": 1024})
    config.data.update({"sequence_length": 1024, "batch_size": 64, "drop_long": True})
    config.optimizer.update({"learning_rate": 6e-4, "warmup": 1000, "b2": 0.95, "weight_decay": 0.1})
    config.training.update({"steps": 40000, "log_every": 50, "checkpoint_every": 1000, "keep": 2})
    return config
