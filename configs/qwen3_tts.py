"""The sizes of Qwen3-TTS-12Hz-1.7B: a Qwen3 of 28 layers, a depth network of 5 over 16 codebooks at 12.5 Hz, a table
of 151936 pieces of text beside the audio. For `audiolm plan`; the published one is fine-tuned with
finetune_qwen3_tts.py.

    audiolm plan --config qwen3_tts --topology v5e-16
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.codec.update({"name": "qwen3", "path": "Qwen/Qwen3-TTS-Tokenizer-12Hz@main", "codebooks": 16})
    config.serialization.strategy = "depth"
    # The 1024 ids of control are what the first stream holds beside codes; text has a table of its own.
    config.text.update({"vocabulary": "pieces", "size": 1024, "given": True})
    block = {"qk_norm": True, "norm_eps": 1e-6, "head_width": 128, "heads": 16, "kv_heads": 8}
    config.model.update({"layers": 28, "width": 2048, "ffn": 6144, "rope_base": 1e6, **block})
    config.model.update({"text_rows": 151936, "text_width": 2048, "remat": True})
    config.depth.update({"layers": 5, "width": 1024, "ffn": 3072, "rope_base": 1e4, **block})
    config.depth.update({"join": "prefix", "positions": "rotary", "embeddings": "backbone", "projection_bias": True})
    # Two minutes at 12.5 frames per second, and their prompt.
    config.data.update({"sequence_length": 2048, "max_frames": 1500, "batch_size": 32, "drop_text": 0.0})
    config.sharding.preset = "fsdp"
    config.optimizer.update({"learning_rate": 3e-4, "warmup": 1000, "b2": 0.95, "weight_decay": 0.1})
    config.training.update({"codebook_weights": (50.0, *[1.0] * 15), "steps": 100000})
    return config
