"""Seven orders, three seeds, the same speech: the ablation, and the small checkpoints that come out of it.

    audiolm compare --config experiments/serialization_ablation/config.py --workdir runs/ablation

Two CPU cores: three to four hours. The same command in a second process shares the work.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.compare.update(
        {
            # The rows and steps below are those of the first.
            "strategies": ("flat", "parallel", "delay", "coarse_first", "depth", "hierarchical", "masked"),
            "seeds": (0, 1, 2),
            "equal": "tokens",
        }
    )
    # One epoch: a model that sees 8,000 strings six times learns these by heart (190 bits per second on them, 289 on
    # others). Digit strings last 0.7 to 2.7 seconds: no row of `flat` is longer than 257 positions.
    config.corpus.update({"speakers": 4, "train": 40000, "valid": 60, "test": 200, "unseen": 100, "max_seconds": 3.8})
    config.codec.codebooks = 3  # 75 codes a second; the recogniser errs no more through them than through all 16
    config.data.update({"sequence_length": 264, "batch_size": 10, "max_frames": 96, "template": "{speaker}: {text}"})
    config.model.update({"layers": 4, "width": 128, "heads": 4, "kv_heads": 4, "head_width": 32, "ffn": 384})
    # Together 3.4 % more parameters than the transformer has without it, and 2.4 % less FLOPs.
    config.depth.update({"layers": 1, "width": 64, "heads": 2, "kv_heads": 2, "head_width": 32, "ffn": 176})
    config.optimizer.update({"learning_rate": 3e-3, "warmup": 100})
    # Half of the rows of hierarchical and masked start without a prompt, as the evaluation does.
    config.serialization.prompt_fraction = 0.5
    config.training.update({"steps": 3000, "log_every": 50, "checkpoint_every": 250})
    # Colder than the model: what is said matters here, not variety.
    config.sampling.temperature = (0.5,)
    config.evaluation.update({"also": ("unseen",), "sentences": 100, "batch": 20, "timed": 2, "repeats": 2})
    return config
