"""The sizes of CSM-1b: a Llama of 1 G parameters, a depth network of 100 M over the 32 codebooks of Mimi, text of
128256 pieces that is given. For `audiolm plan`, and for a model of one's own; the published one is fine-tuned with
finetune_csm.py.

    audiolm plan --config csm --topology v5e-16
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.codec.update({"name": "mimi", "path": "kyutai/mimi@main", "codebooks": 32})
    config.serialization.strategy = "depth"
    config.text.update({"vocabulary": "pieces", "size": 128256, "given": True})
    rope = {"rope_base": 500000.0, "rope_scaling": (32.0, 1.0, 4.0, 8192.0), "norm_eps": 1e-5}
    config.model.update({"layers": 16, "width": 2048, "heads": 32, "kv_heads": 8, "head_width": 64, "ffn": 8192})
    config.model.update({"remat": True, **rope})
    config.depth.update({"layers": 4, "width": 1024, "heads": 8, "kv_heads": 2, "head_width": 128, "ffn": 8192})
    config.depth.update({"join": "prefix", "positions": "rotary", "embeddings": "backbone", **rope})
    # 90 seconds at 12.5 frames per second, and their words.
    config.data.update({"sequence_length": 2048, "max_frames": 1125, "batch_size": 32, "drop_long": True})
    config.sharding.preset = "fsdp"
    config.optimizer.update({"learning_rate": 3e-4, "warmup": 1000, "b2": 0.95, "weight_decay": 0.1})
    config.training.update({"codebook_weights": (31.0, *[1.0] * 31), "depth_fraction": 0.0625, "steps": 100000})
    return config
