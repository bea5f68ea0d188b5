"""28 M parameters, 6 layers of width 512: a first run on one machine, or on four chips (v5e-4).

    audiolm train --config size_30m --data data/mine --workdir runs/mine
    audiolm plan --config size_30m --topology v5e-4

Planned on v5e-4 (64 rows of 1024 positions): the train step needs 5.32 of 15.75 GiB per chip and at least 14.9 ms,
bound by compute. The keys for Mimi and EnCodec are in size_300m.py.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.codec.codebooks = 8
    config.model.update(
        {"layers": 6, "width": 512, "heads": 8, "kv_heads": 8, "head_width": 64, "ffn": 2048, "mlp": "plain"}
    )
    config.depth.update({"layers": 2, "width": 256, "heads": 4, "kv_heads": 4, "head_width": 64, "ffn": 512})
    config.data.update({"sequence_length": 1024, "batch_size": 64, "drop_long": True})
    config.optimizer.update({"learning_rate": 1e-3, "warmup": 1000, "b2": 0.95, "weight_decay": 0.1})
    config.training.update({"steps": 20000, "log_every": 50, "checkpoint_every": 1000, "keep": 2})
    return config
