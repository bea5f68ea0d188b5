# ---
# jupyter:
#   accelerator: GPU
#   colab:
#     gpuType: T4
#   jupytext:
#     formats: ipynb,py:percent
#     notebook_metadata_filter: accelerator,colab
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Music from text: MusicGen in JAX
#
# Loads the published weights of [MusicGen](https://arxiv.org/abs/2306.05284) without torch, makes music from a text,
# continues a recording, and shows what guidance and temperature do.
#
# **Runtime.** *Runtime → Change runtime type* chooses it. Nothing below depends on the choice: the model runs on the
# accelerator that JAX finds, in bfloat16 on a GPU or a TPU and in float32 on a CPU (`dtype` "auto").
#
# | runtime | |
# |---|---|
# | GPU (T4, L4, A100) | the small and the medium model fit a T4; the large one has 13 GB of weights |
# | TPU (v5e, v6e) | |
# | CPU | works, with patience: choose few seconds |
#
# Colab brings JAX, Flax and numpy, with the plugin of its accelerator. The package runs on them and replaces none of
# them; should Colab still ask for a restart after the install cell, restart and go on with the next cell. Elsewhere,
# install JAX for the accelerator as well: `%pip install "jax[cuda12]"` or `%pip install "jax[tpu]"`.

# %% tags=["install"]
PACKAGE = "audiolm-jax"  # or an address: "git+" and what `git clone` takes, a wheel, a folder
# %pip install --quiet "{PACKAGE}"

# %% tags=["parameters"]
CHECKPOINT = "facebook/musicgen-small@main"  # or -medium, -large, -stereo-small ...; or a folder
TEXT = "slow jazz with a loud piano"
SECONDS = 8.0  # the model was trained on 30
SEED = 0
RECORDING = ""  # of yours, to be continued: a path; empty: half of what is made here
UPLOAD = False  # True, on Colab: choose that file in a dialog

# %%
import dataclasses

import jax
import matplotlib.pyplot as plt
import numpy as np
import soundfile
from IPython.display import HTML, display

import audiolm_jax
from audiolm_jax.serialization import picture

print("JAX", jax.__version__, "on", jax.devices())

# %% [markdown]
# ## Load
#
# Downloads the checkpoint (2.4 GB for the small one), and checks that every weight is there and has the right shape.

# %%
generator = audiolm_jax.load(CHECKPOINT)
codec, model = generator.codec, generator.model.config
print(f"{model.layers} layers of width {model.width}, computed in {model.compute_dtype}")
print(f"{codec.codebooks} codebooks of {codec.codebook_size} codes, {codec.frame_rate:g} frames a second")

# %% [markdown]
# ## From a text
#
# The first call compiles the programs, the next ones of the same length only run.


# %%
def show(title, result):
    """A player; time to the right, frequency upwards, loudness as colour."""
    _, axes = plt.subplots(figsize=(9, 2.4), layout="constrained")
    axes.specgram(np.atleast_2d(result.waveform)[0], NFFT=1024, noverlap=512, Fs=result.sample_rate, cmap="magma")
    axes.set(title=title, xlabel="seconds", ylabel="Hz")
    plt.show()
    display(result)


result = generator.generate(TEXT, seconds=SECONDS, seeds=[SEED])
print(f"{SECONDS:g} s of audio in {result.seconds:.1f} s, {result.passes} passes of the network")
show(TEXT, result)

# %% [markdown]
# The same again is the same music, sample by sample; another seed is another piece. A file of it:

# %%
result.save("music.wav")  # or .flac, .ogg, .mp3

# %% [markdown]
# ## What the model writes
#
# The codec turns a second of audio into a grid: a column of codes for each frame, the coarsest code on top. MusicGen
# predicts it in the order *delay*: codebook q comes q steps later than the first one, so that each pass of the network
# gives one code of every codebook. The numbers are the steps. Below it the codes that were just made.

# %%
display(HTML(picture.svg(generator.grid, frames=8)))

_, axes = plt.subplots(figsize=(9, 2), layout="constrained")
axes.imshow(result.codes_TQ[:100].T, aspect="auto", interpolation="nearest", cmap="viridis")
axes.set(title="codes", xlabel="frame", ylabel="codebook", yticks=range(codec.codebooks))
plt.show()

# %% [markdown]
# ## Several at once
#
# The rows of a batch share the passes of the network: four pieces take hardly longer than one on an accelerator.

# %%
texts = [TEXT, "fast drums", "quiet piano", "loud rock with drums"]
pieces = generator.generate(texts, seconds=SECONDS, seeds=[SEED] * len(texts))
for text, piece in zip(texts, pieces, strict=True):
    show(text, piece)

# %% [markdown]
# ## Guidance and temperature
#
# Guidance g takes the logits u + g (c - u), c with the text and u without it: 1 is off, more follows the text closer
# and varies less. Temperature divides the logits: below 1 what is likely becomes likelier. As published, guidance is 3,
# temperature 1, and the 250 most likely codes are drawn from (`top_k`). Same text and seed in all of them:

# %%
published = generator.sampling
settings = {
    "as published": published,
    "guidance 1: off": dataclasses.replace(published, guidance=1.0),
    "guidance 6": dataclasses.replace(published, guidance=6.0),
    "temperature 0.7": dataclasses.replace(published, temperature=0.7),
}
pieces = generator.generate(
    [TEXT] * len(settings), seconds=SECONDS, seeds=[SEED] * len(settings), sampling=list(settings.values())
)
for title, piece in zip(settings, pieces, strict=True):
    show(title, piece)

# %% [markdown]
# ## Continue a recording
#
# One of your own: what libsndfile reads (wav, flac, ogg, mp3 ...), of which the first seconds are taken, half of
# `SECONDS`. Without one, the first half of the piece above goes on in another way.

# %% tags=["recordings"]
if UPLOAD:
    from google.colab import files

    RECORDING = next(iter(files.upload()))  # it lies beside the notebook then
if RECORDING:
    samples, rate = soundfile.read(RECORDING, always_2d=False)
else:
    samples, rate = result.waveform.T, result.sample_rate
beginning = samples[: round(SECONDS / 2 * rate)]

# %%
continued = generator.generate(TEXT, audio=(beginning, rate), seconds=SECONDS, seeds=[SEED + 1], include_prompt=True)
show(f"the first {continued.prompt_frames / codec.frame_rate:g} seconds were given", continued)
