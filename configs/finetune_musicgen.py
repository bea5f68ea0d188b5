"""Fine-tuning of an imported MusicGen on a folder of recordings with captions (experiments/finetune_musicgen).

    audiolm import facebook/musicgen-small@main runs/base
    audiolm prepare --config finetune_musicgen --data data/mine --config.corpus.path=recordings
    audiolm train --config finetune_musicgen --data data/mine --workdir runs/tuned
    audiolm generate --workdir runs/tuned --text "slow jazz with a loud piano" --seconds 8 --out jazz.wav

LoRA on the attention of every layer. All weights instead: --config.lora.rank=0 --config.optimizer.learning_rate=1e-5.
The model, its order and its codec are those of `finetune.base`.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.finetune.base = "runs/base"
    config.lora.rank = 16
    # Longer ones than 30 seconds are cut at random, anew in every epoch; of those over 10 minutes each part has the
    # whole caption.
    config.corpus.update({"name": "folder", "min_seconds": 1.0, "max_seconds": 600.0, "long": "windows"})
    # 30 seconds at 50 frames per second, and the delays.
    config.data.update({"sequence_length": 1504, "batch_size": 4})
    # Rates that leave the weights near what they were; averages as audiocraft trains with.
    config.optimizer.update({"learning_rate": 1e-4, "warmup": 100, "b2": 0.95, "weight_decay": 0.0})
    config.training.update({"steps": 2000, "checkpoint_every": 200})
    config.model.remat = True
    # As MusicGen is published; for training.probe_every.
    config.sampling.update({"top_k": (250,), "guidance": 3.0})
    return config
