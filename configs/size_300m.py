"""321 M parameters: the decoder of MusicGen-small without its cross-attention, 24 layers of width 1024. For a pod
(v5e-256); fewer chips take the rows in parts, as with v5e-16 and --config.training.accumulate=16.

    audiolm plan --config size_300m --topology v5e-256
    tpu/run.sh train --config size_300m --data bucket/data --workdir bucket/runs/mine

Planned on v5e-256 (1024 rows of 1024 positions): the train step needs 9.38 of 15.75 GiB per chip and at least 44 ms,
bound by compute. The shapes of MusicGen itself are those of EnCodec at 32 kHz, four codebooks of 2048 codes at 50 Hz:
--config.codec.name=encodec --config.codec.path=facebook/encodec_32khz --config.codec.codebooks=4
--config.data.max_frames=1500 --config.data.sequence_length=2048; for Mimi, eight of 2048 codes at 12.5 Hz:
--config.codec.name=mimi --config.codec.path=kyutai/mimi@main --config.codec.codebooks=8 --config.data.max_frames=375
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.codec.codebooks = 8
    config.model.update(
        {"layers": 24, "width": 1024, "heads": 16, "kv_heads": 16, "head_width": 64, "ffn": 4096, "mlp": "plain"}
    )
    config.depth.update({"layers": 4, "width": 512, "heads": 8, "kv_heads": 4, "head_width": 64, "ffn": 1408})
    config.data.update({"sequence_length": 1024, "batch_size": 1024, "drop_long": True})
    config.sharding.preset = "fsdp"
    config.optimizer.update({"learning_rate": 4e-4, "warmup": 1000, "b2": 0.95, "weight_decay": 0.1})
    config.training.update({"steps": 100000, "log_every": 50, "checkpoint_every": 1000, "keep": 2})
    return config
