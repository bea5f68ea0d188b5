"""Fine-tuning of an imported Qwen3-TTS on a folder of recordings with their texts, each up to 30 seconds long.

    audiolm import Qwen/Qwen3-TTS-12Hz-0.6B-Base@main runs/base
    audiolm prepare --config finetune_qwen3_tts --data data/mine --config.corpus.path=recordings
    audiolm train --config finetune_qwen3_tts --data data/mine --workdir runs/tuned
    audiolm generate --workdir runs/tuned --text "hello from here" --out hello.wav

LoRA on the attention of every layer, of the depth network too. All weights instead: --config.lora.rank=0
--config.optimizer.learning_rate=1e-5. The model, its order, its text and its codec are those of `finetune.base`. What a
training row must be like: docs/qwen3_tts_finetuning.md. The published loss adds 0.3 of the mean over the 15 other
codebooks to that of codebook 0 (the fine-tuning script of QwenLM/Qwen3-TTS at 022e286), which is
--config.training.codebook_weights=50,1,1 with a 1 for each of them: 1 / (0.3 / 15) = 50.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.finetune.base = "runs/base"
    config.lora.rank = 16
    # 30 seconds at 12.5 frames per second, their prompt, and, for models with speakers, their text before it.
    config.corpus.update({"name": "folder", "min_seconds": 0.5, "max_seconds": 30.0, "long": "windows"})
    config.data.update({"sequence_length": 640, "batch_size": 8, "drop_text": 0.0})
    config.optimizer.update({"learning_rate": 1e-4, "warmup": 100, "b2": 0.95, "weight_decay": 0.0})
    config.training.update({"steps": 2000, "checkpoint_every": 200})
    config.model.remat = True
    # As Qwen3-TTS is published; for training.probe_every.
    config.sampling.update({"temperature": (0.9,), "top_k": (50,)})
    return config
