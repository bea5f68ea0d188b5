"""All keys at their defaults; `audiolm config` prints them with their meaning. Other configurations change a few.

audiolm train --config default --data data/mine --workdir runs/mine --config.model.layers=6
"""

from ml_collections import ConfigDict

from audiolm_jax import config


def get_config() -> ConfigDict:
    return config.defaults()
