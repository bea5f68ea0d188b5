"""Speech from a model of train.py, or of any file that `audiolm export` wrote with a codec that ships here.

python -m experiments.nano.sample runs/nano/model.safetensors --text "three one four" --out three.wav
"""

import argparse
from pathlib import Path

import soundfile

from audiolm_jax import codecs
from audiolm_jax.model import checkpoints
from audiolm_jax.sampling import SamplingConfig
from audiolm_jax.sampling.generator import Generator, Result


def sample(path: Path, text: str, seconds: float | None, temperature: float, seed: int) -> Result:
    """Codes and waveform of `text`, as long as `seconds` or until the model predicts the end.

    The state of the sampling loop is the grid of codes: each pass of the network fills the cells whose step it is
    (audiolm_jax/sampling/causal.py).
    """
    model, spec = checkpoints.load_safetensors(path)
    codec = codecs.load(spec.codec.name, spec.codec.path, spec.codec.codebooks)
    sampling = SamplingConfig(temperature=(temperature,), seed=seed)
    generator = Generator(model, spec, codec, sampling)
    return generator.generate(text, seconds=seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, help="length (default: the model ends by itself)")
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    result = sample(options.model, options.text, options.seconds, options.temperature, options.seed)
    soundfile.write(options.out, result.waveform, result.sample_rate)
    print(f"{options.out}: {len(result.codes_TQ)} frames in {result.passes} passes, {result.seconds:.1f} s")


if __name__ == "__main__":
    main()
