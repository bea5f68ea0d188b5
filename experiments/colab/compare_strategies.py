# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     notebook_metadata_filter: accelerator,colab
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # In which order should a model predict the codes of speech?
#
# A codec turns speech into a grid of codes, frames by codebooks; a language model needs an order on it. This notebook
# trains four orders on the same synthetic speech, with the same network and the same training compute, and compares
# their likelihoods and what they say. Nothing is downloaded but the package: the speech is spoken here, by espeak-ng.
#
# **Runtime.** A CPU runtime does: the models are small, and two cores need five to ten minutes. *Runtime → Change
# runtime type* gives a GPU or a TPU. Nothing below depends on it: the models are trained on all devices that JAX finds,
# in bfloat16 on a GPU or a TPU and in float32 on a CPU (`dtype` "auto"). Models as small as these leave an accelerator
# idle: there, give more steps and a larger network.
#
# Colab brings JAX, Flax and numpy, with the plugin of its accelerator. The package runs on them and replaces none of
# them; should Colab still ask for a restart after the install cell, restart and go on with the next cell. Elsewhere,
# install JAX for the accelerator as well: `%pip install "jax[cuda12]"` or `%pip install "jax[tpu]"`.

# %% tags=["install"]
PACKAGE = "audiolm-jax"  # or an address: "git+" and what `git clone` takes, a wheel, a folder
# %pip install --quiet "{PACKAGE}"

# %% tags=["parameters"]
CONFIG = "demo"  # configs/demo.py: a small model; 4 codebooks of 1024 codes, 25 frames a second
STRATEGIES = ("flat", "delay", "hierarchical", "masked")  # also: parallel, coarse_first
UTTERANCES = 1200  # of training
STEPS = 160
TEMPERATURE = 0.5  # of what is spoken, below 1: what is said matters, not variety; likelihoods know none
SEED = 0
WORKDIR = "runs/notebook"

# %%
import json
from pathlib import Path

import jax
import matplotlib.pyplot as plt
from IPython.display import HTML, Audio, display

import audiolm_jax
from audiolm_jax import config as configs
from audiolm_jax import serialization
from audiolm_jax.compare import compare
from audiolm_jax.serialization import SerializationConfig, picture

print("JAX", jax.__version__, "on", jax.devices())

# %% [markdown]
# ## The orders
#
# Frames go to the right, codebooks down, the coarsest on top. A cell shows the step at which it is predicted; cells of
# one step are predicted together, given the text and all cells of earlier steps.
#
# - **flat** (AudioLM) predicts one cell after the other: frame by frame, and in a frame from coarse to fine. Every cell
#   knows all that came before it, at the price of as many passes of the network as there are cells.
# - **delay** (MusicGen) moves codebook q by q steps and predicts one cell of every codebook in each pass. A cell knows
#   the coarser ones of its frame, and far fewer passes are needed; what it does not know are finer cells of the frames
#   just before.
# - **hierarchical** (VALL-E) predicts the coarsest codebook from left to right, then each finer one in a single pass
#   over all frames. A cell of a finer codebook knows the coarser ones of all frames, later ones too, but no other cell
#   of its own.
# - **masked** (SoundStorm) fills codebook after codebook, the coarsest in several passes, and in each pass the cells
#   that it is surest of. The order within a codebook differs from utterance to utterance; the picture shows one.

# %%
pictures = []
for strategy in STRATEGIES:
    iterations = (4, 1, 1, 1) if strategy == "masked" else ()  # passes of each codebook: few, to be seen
    grid = serialization.bind(SerializationConfig(strategy=strategy, iterations=iterations), codebooks=4)
    pictures.append(picture.svg(grid, frames=6))
display(HTML(f'<div style="display: flex; flex-wrap: wrap; gap: 2em">{"".join(pictures)}</div>'))

# %% [markdown]
# ## Train and measure
#
# The same as `audiolm compare --config demo --workdir ...` on the command line, only shorter. What is done stays in
# the folder: after an interruption the cell goes on where it stopped. `audiolm config` explains every key.

# %%
config = configs.load(CONFIG)
config.seed = SEED
config.compare.strategies = STRATEGIES
config.corpus.train = UTTERANCES
config.training.steps = STEPS
config.sampling.temperature = (TEMPERATURE,)
report = compare.run(config, Path(WORKDIR))

# %% [markdown]
# ## Likelihood
#
# Bits that the held-out speech costs, per second of audio: less is better. Bars are 95 % intervals over utterances.
# Another seed of training would move the values too: only several seeds (`config.compare.seeds = (0, 1, 2)`) say
# whether a difference is one of the orders. The number of *masked* is an upper bound: sampling in the order of its own
# confidence has no likelihood that can be computed. Beside it, what they take to be made: passes of the network.

# %%
results = json.loads((Path(WORKDIR) / "results.json").read_text())
entries = results["strategies"]
names = [entry["name"] + (" (bound)" if entry["likelihood"] == "bound" else "") for entry in entries]

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3), layout="constrained", sharey=True)
for row, entry in enumerate(entries):
    bits, low, high = (entry[f"bits_per_second{end}"] for end in ("", "_low", "_high"))
    ends = None if low is None else [[bits - low], [high - bits]]  # fewer than 20 utterances have no interval
    passes = entry["cost"]["measured_passes"]
    left.errorbar(bits, row, xerr=ends, fmt="o", capsize=4, color=f"C{row}")
    right.barh(row, passes / entry["cost"]["frames"], color=f"C{row}")
unigram = results["baselines"]["unigram_bits_per_second"]
left.axvline(unigram, color="gray", linestyle=":", label="codes without a network (unigram)")
left.set(yticks=range(len(names)), yticklabels=names, xlabel="bits per second of audio")
left.invert_yaxis()
right.set(xlabel="passes per frame")
figure.legend(loc="outside upper left")
plt.show()

# %% [markdown]
# Differences are surer than the values themselves, as they are taken utterance by utterance:

# %%
sides = {None: "", "upper": "at most ", "lower": "at least ", "both": "between bounds "}
for pair in results["differences"]:
    if pair["metric"] == "bits_per_second":
        interval = "no interval" if pair["low"] is None else f"{pair['low']:.0f} to {pair['high']:.0f}"
        print(f"{pair['a']} - {pair['b']}: {sides[pair['bound']]}{pair['difference']:.0f} ({interval})")

# %% [markdown]
# What is equal here is the training compute, and little of it was spent. *flat* takes a position of the sequence for
# every code where *delay* takes one for a frame, so it was shown less speech (see the hours above). Shown the same
# speech for long enough it is the best of all: `experiments/serialization_ablation` is that comparison, with three
# seeds, and `config.compare.equal = "tokens"` its condition.
#
# ## Listen
#
# A held-out sentence: the recording, the same through the codec, and spoken by each model from the text; beside each
# name, what a small recogniser heard. After so few steps the models say few digits right; the likelihood tells them
# apart long before the ear does. `experiments/serialization_ablation` has checkpoints of 3,000 steps that can be
# understood.

# %%
sentence = 0
said = results["sentences"][sentence]
print(f"“{said['text']}”, voice {said['speaker']}")
spoken = {"recording": results["ceilings"]["real"], "through the codec": results["ceilings"]["codec"]}
spoken |= {entry["name"]: entry for entry in entries}
for name, source in spoken.items():
    sample = source["samples"][sentence]
    print(f"{name}: “{sample['transcript']}”")
    display(Audio(str(Path(WORKDIR) / sample["file"])))

# %% [markdown]
# Each is a run of its own that says what you give it. It knows the digits, and its voices by name:

# %%
generator = audiolm_jax.load(Path(WORKDIR) / "runs" / STRATEGIES[-1])
generator.generate("three one four", speakers=said["speaker"], temperature=TEMPERATURE, seed=SEED)

# %% [markdown]
# All numbers, charts and sentences are in one page, to be downloaded from the file browser on the left:

# %%
print(report)
