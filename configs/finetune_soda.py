"""Fine-tuning of an imported SODA on a folder of recordings with transcripts.

    audiolm import soda-research/soda-600m-base@main runs/soda
    audiolm prepare --config finetune_soda --data data/mine --config.corpus.path=recordings
    audiolm train --config finetune_soda --data data/mine --workdir runs/tuned
    audiolm generate --workdir runs/tuned --text "Good morning." --out morning.wav

LoRA on every layer. All weights instead: --config.lora.rank=0 --config.optimizer.learning_rate=1e-5. The model, its
order, its codec and its tokenizer are those of `finetune.base`. `data.text_weight=1` trains to predict text as well, as
SODA was trained.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.finetune.base = "runs/soda"
    config.lora.update({"rank": 16, "matrices": ("attention", "ffn")})
    config.corpus.update({"name": "folder", "min_seconds": 0.5, "max_seconds": 40.0})
    # 100 positions a second: 40 seconds and their text.
    config.data.update({"sequence_length": 4096, "batch_size": 4, "drop_long": True})
    config.optimizer.update({"learning_rate": 1e-4, "warmup": 100, "b2": 0.95, "weight_decay": 0.0})
    config.training.update({"steps": 2000, "checkpoint_every": 200})
    config.model.remat = True
    return config
