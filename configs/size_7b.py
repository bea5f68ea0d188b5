"""7.06 G parameters, the backbone of Llama 3 8B: 32 layers of width 4096, gated, 8 key/value heads. For
v5p-512, v6e-256 or v5e-256. To sample from it on chips of 16 GB, share the heads: --config.sharding.preset=fsdp_tensor
--config.sharding.tensor=8.

    audiolm plan --config size_7b --topology v5p-512
    tpu/run.sh train --config size_7b --data bucket/data --workdir bucket/runs/mine

Planned on v5e-256 (256 rows of 1024 positions): the train step needs 1.60 of 15.75 GiB per chip and at least 282 ms,
bound by the interconnect, with as much arithmetic. More is in docs/plans.md; the keys for Mimi and EnCodec are in
size_300m.py.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.codec.codebooks = 8
    config.model.update(
        {"layers": 32, "width": 4096, "heads": 32, "kv_heads": 8, "head_width": 128, "ffn": 14336, "remat": True}
    )
    config.depth.update({"layers": 6, "width": 1024, "heads": 16, "kv_heads": 16, "head_width": 64, "ffn": 2816})
    config.data.update({"sequence_length": 1024, "batch_size": 256, "drop_long": True})
    config.sharding.preset = "fsdp"
    config.optimizer.update({"learning_rate": 2e-4, "warmup": 1000, "b2": 0.95, "weight_decay": 0.1})
    config.training.update({"steps": 200000, "log_every": 50, "checkpoint_every": 1000, "keep": 2})
    return config
