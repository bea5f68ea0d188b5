"""The kept checkpoints in half precision: do likelihood and speech stay within their intervals?

    python -m experiments.serialization_ablation.half CHECKPOINTS --data runs/ablation/data

CHECKPOINTS is a folder of float32 files STRATEGY.safetensors; DATA holds the tokens of the ablation, of which the split
`test` is read. Weights are rounded to each dtype and computed with in float32, as `load` does with a file of half
precision. Prints a Markdown table; differences are to float32, paired over utterances, with 95 % intervals.

Two CPU cores: fifteen minutes.
"""

import argparse
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from audiolm_jax import codecs
from audiolm_jax.data import batches, tokens
from audiolm_jax.data.examples import document
from audiolm_jax.encoders import recogniser
from audiolm_jax.evaluation import intelligibility, intervals, likelihood
from audiolm_jax.model import checkpoints, sharding
from audiolm_jax.sampling import SamplingConfig
from audiolm_jax.sampling.generator import Generator

DTYPES = ("float32", "float16", "bfloat16")
SENTENCES, ROWS = 100, 20  # spoken in all, and at once
HEADER = """\
| strategy | dtype | bits per second (95 %) | difference (95 %) | character errors (95 %) | difference (95 %) |
|---|---|--:|--:|--:|--:|"""


def rounded(model, dtype: str):
    """The model with float32 parameters that have the values of `dtype`."""
    graph, params = nnx.split(model)
    return nnx.merge(graph, jax.tree.map(lambda x: x.astype(dtype).astype(x.dtype), params))


def spoken(generator: Generator, examples: list[dict]) -> list[np.ndarray]:
    """The texts of the examples, spoken by their speakers, as `audiolm compare` does it."""
    waveforms = []
    for start in range(0, len(examples), ROWS):
        some = examples[start : start + ROWS]
        texts, speakers = ([example[key] for example in some] for key in ("text", "speaker"))
        seeds = [start + row for row in range(ROWS)]
        waveforms += [r.waveform for r in generator.generate(texts, speakers=speakers, seeds=seeds)]
    return waveforms


def show(value: intervals.Interval, unit: float = 1) -> str:
    if value.low is None or value.high is None:
        return f"{value.value * unit:.2f}"
    return f"{value.value * unit:.2f} ({value.low * unit:.2f} to {value.high * unit:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoints", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    options = parser.parse_args()
    judge = recogniser.load()
    print(HEADER)
    for path in sorted(options.checkpoints.glob("*.safetensors")):
        model, spec = checkpoints.load_safetensors(path)
        vocab, grid, data = spec.vocab, spec.grid, spec.data
        codec = codecs.load("default", codebooks=vocab.codebooks)
        source = tokens.open_split(options.data / "tokens", "test", codec.fingerprint)
        documents = [document(example, data, vocab) for example in batches.evaluation_examples(source, vocab)]
        said = batches.evaluation_examples(source, vocab, SENTENCES)
        bits, errors = {}, {}
        for dtype in DTYPES:
            half = rounded(model, dtype)
            with jax.set_mesh(sharding.single_device_mesh()):
                score = likelihood.likelihood(half, grid, vocab, documents, codec.frame_rate)
            generator = Generator(half, spec, codec, SamplingConfig(temperature=(0.5,)))
            waveforms = spoken(generator, said)
            transcripts = judge.transcribe(waveforms, codec.sample_rate)
            heard = intelligibility.measure([one["text"] for one in said], transcripts)
            bits[dtype] = score.code_bits_UQ.sum(axis=1), score.seconds_U
            errors[dtype] = np.array(heard["errors"]), np.array(heard["characters"])
            cells = [path.stem, dtype]
            for values, unit in ((bits, 1), (errors, 100)):
                (mine, counts), (full, _) = values[dtype], values["float32"]
                cells.append(show(intervals.ratio(mine, counts), unit))
                cells.append("" if dtype == "float32" else show(intervals.difference(mine, full, counts), unit))
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
