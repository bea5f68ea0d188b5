"""`python -m audiolm_jax` is `audiolm`."""

from audiolm_jax.cli.main import run

if __name__ == "__main__":  # loader processes import this file again
    run()
