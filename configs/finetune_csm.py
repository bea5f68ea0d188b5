"""Fine-tuning of an imported CSM on a folder of recordings with their transcripts, one turn each.

    audiolm import sesame/csm-1b@main runs/base
    audiolm prepare --config finetune_csm --data data/mine --config.corpus.path=recordings
    audiolm train --config finetune_csm --data data/mine --workdir runs/tuned
    audiolm generate --workdir runs/tuned --text "hello from here" --out hello.wav

LoRA on the attention of every layer, of the depth network too. All weights instead: --config.lora.rank=0
--config.optimizer.learning_rate=1e-5. The model, its order, its text and its codec are those of `finetune.base`.
That codebook 0 weighs as much as the 31 others together, as in `transformers`, is
--config.training.codebook_weights=31,1,1 with a 1 for each of them.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.finetune.base = "runs/base"
    config.lora.rank = 16
    # 40 seconds at 12.5 frames per second, and their words.
    config.corpus.update({"name": "folder", "min_seconds": 0.5, "max_seconds": 40.0, "long": "windows"})
    config.data.update({"sequence_length": 640, "batch_size": 8, "drop_text": 0.0, "drop_long": True})
    # A sixteenth of the frames trains the depth network, as CSM was trained; the sum keeps its expectation.
    config.training.depth_fraction = 0.0625
    config.optimizer.update({"learning_rate": 1e-4, "warmup": 100, "b2": 0.95, "weight_decay": 0.0})
    config.training.update({"steps": 2000, "checkpoint_every": 200})
    config.model.remat = True
    # As CSM is published; for training.probe_every.
    config.sampling.update({"temperature": (0.9,), "top_k": (50,)})
    return config
