"""Every key there is, with its meaning. Other configurations change a few of these.

    audiolm train --config configs/default.py --workdir runs/mine --config.model.layers=6
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()

    # Of initial weights, data order and training noise. Corpora have a seed of their own.
    config.seed = 0

    # Where audio and text come from.
    config.corpus = ConfigDict(
        {
            # "synthetic" (spoken here by espeak-ng), "folder" (own recordings) or "tfds" (a prepared data set).
            "name": "synthetic",
            # folder: the folder with the recordings. synthetic: where to keep them; "" is below the workdir.
            "path": "",
            # Hz of what the corpus delivers; recordings at another rate are resampled.
            "sample_rate": 16000,
            # Recordings shorter or longer than this many seconds are rejected.
            "min_seconds": 0.3,
            "max_seconds": 30.0,
            # The run stops when more than this share of the recordings is rejected.
            "max_reject_fraction": 0.2,
            # synthetic: "digits" (strings of 3-6 digit words) or "templates" (sentences of about 330 words).
            "level": "digits",
            # synthetic: voices of train, valid and test, and further voices heard only in the split "unseen".
            "speakers": 8,
            "unseen_speakers": 4,
            # synthetic: utterances in each split. No text is in two splits.
            "train": 1800,
            "valid": 100,
            "test": 100,
            "unseen": 40,
            # synthetic: of texts, voices and synthesis; the same seed gives the same samples.
            "seed": 0,
            # synthetic: processes that speak at the same time, and utterances in one resumable shard.
            "workers": 2,
            "shard_size": 128,
            # folder, tfds: shares put in valid and test (by a hash of the name) where no split is given.
            "valid_fraction": 0.05,
            "test_fraction": 0.05,
            # folder, tfds: True rejects recordings without text, False takes them as speech alone.
            "require_text": True,
            # tfds: name of the prepared set, such as "my_set/config:1.0.0", and its folder ("": the default).
            "tfds_name": "",
            "tfds_data_dir": "",
            # tfds: the features that hold audio, text and speaker ("": none; "a/b": feature b inside a).
            "tfds_audio": "audio",
            "tfds_text": "text",
            "tfds_speaker": "",
            # tfds: the feature that holds the sample rate ("": none), and the rate in Hz where there is none.
            "tfds_rate": "",
            "tfds_sample_rate": 16000,
        }
    )

    # What turns waveforms into codes and back.
    config.codec = ConfigDict(
        {
            # "default" (neural, 16 kHz) or "tiny" (a toy for tests that needs no weights).
            "name": "default",
            # A weights file; None is the one that ships with the package.
            "path": None,
            # How many codebooks to keep, the coarsest first; None keeps all.
            "codebooks": None,
        }
    )
    return config
