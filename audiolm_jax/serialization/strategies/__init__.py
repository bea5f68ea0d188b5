"""The strategies, one file each: siblings with the same few functions (see `audiolm_jax/serialization/__init__.py`)."""
