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
# # Fine-tune MusicGen on recordings of your own
#
# Imports the published weights, trains LoRA adapters on a folder of recordings with captions, lets you hear the same
# texts before and after, and exports the result in the layout that the checkpoint came in.
#
# **Runtime.** *Runtime → Change runtime type* chooses it. Take a GPU or a TPU: training computes in bfloat16 there
# (`dtype` "auto"). On a CPU it computes in float32, and is too slow for more than a try with few steps. If the memory
# of the accelerator does not suffice, halve `BATCH`.
#
# Colab brings JAX, Flax and numpy, with the plugin of its accelerator. The package runs on them and replaces none of
# them; should Colab still ask for a restart after the install cell, restart and go on with the next cell. Elsewhere,
# install JAX for the accelerator as well: `%pip install "jax[cuda12]"` or `%pip install "jax[tpu]"`.

# %% tags=["install"]
PACKAGE = "audiolm-jax"  # or an address: "git+" and what `git clone` takes, a wheel, a folder
# %pip install --quiet "{PACKAGE}"

# %% tags=["parameters"]
CHECKPOINT = "facebook/musicgen-small@main"  # or -medium, -large, -stereo-small ...; or a folder
RECORDINGS = "recordings"  # wav, flac, ogg or mp3, the caption of each in a .txt of the same name
UPLOAD = False  # True, on Colab: choose files in a dialog, which are put into that folder
TEXTS = ["plucked strings, a slow melody in minor", "plucked strings, a fast melody in major"]  # to listen to
SECONDS = 8.0  # of a piece: longer recordings are cut at random
STEPS = 300
BATCH = 4
LEARNING_RATE = 1e-4
RANK = 16  # of the adapters; 0 trains all weights
SEED = 0

# %%
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
import soundfile
from IPython.display import Audio, display

import audiolm_jax
from audiolm_jax import config as configs
from audiolm_jax import runs
from audiolm_jax.evaluation import evaluate
from audiolm_jax.families import published

print("JAX", jax.__version__, "on", jax.devices())

# %% [markdown]
# ## Recordings
#
# Put yours into the folder `RECORDINGS`: a file of audio, and beside it a .txt with its caption. `UPLOAD` asks for
# them; those in a Google Drive are reached by `from google.colab import drive; drive.mount("/content/drive")`, and
# `RECORDINGS = "/content/drive/MyDrive/..."`.

# %% tags=["recordings"]
if UPLOAD:
    from google.colab import files

    Path(RECORDINGS).mkdir(exist_ok=True)
    for name, content in files.upload().items():
        Path(RECORDINGS, name).write_bytes(content)

# %% [markdown]
# As long as there is no such folder, this cell makes one to try it with: synthetic plucked strings, slow and fast,
# major and minor.

# %%
MAJOR, MINOR = (0, 2, 4, 5, 7, 9, 11, 12), (0, 2, 3, 5, 7, 8, 10, 12)  # semitones above the lowest tone


def pluck(semitones, rate=32000):
    """A string of one second, this many semitones above 220 Hz: overtones that fade, the higher the faster."""
    time, hertz = np.arange(rate) / rate, 220 * 2 ** (semitones / 12)
    return sum(np.exp(-3 * k * time) * np.sin(2 * np.pi * k * hertz * time) / k for k in range(1, 9))


if not Path(RECORDINGS).exists():
    Path(RECORDINGS).mkdir()
    random = np.random.default_rng(SEED)
    for number in range(32):
        pace, mode = random.choice(["slow", "fast"]), random.choice(["major", "minor"])
        step = 16000 if pace == "slow" else 6400  # samples from one tone to the next
        tones = random.choice(MAJOR if mode == "major" else MINOR, size=round(SECONDS * 32000) // step)
        sound = np.zeros(len(tones) * step + 32000)
        for position, tone in enumerate(tones):
            sound[position * step :][:32000] += 0.15 * pluck(tone)
        soundfile.write(f"{RECORDINGS}/{number}.wav", sound, 32000)
        Path(f"{RECORDINGS}/{number}.txt").write_text(f"plucked strings, a {pace} melody in {mode}")

example = sorted(Path(RECORDINGS).glob("*.wav"))[0]
print(example.with_suffix(".txt").read_text())
Audio(str(example))

# %% [markdown]
# ## Before
#
# `import_run` makes a workdir of the checkpoint, which training starts from. What it makes of the texts:

# %%
if not Path("runs/base").exists():
    published.import_run(CHECKPOINT, "runs/base")


def listen(workdir):
    """The texts as made by a run: titles and players."""
    generator = audiolm_jax.load(workdir)
    pieces = generator.generate(TEXTS, seconds=SECONDS, seeds=[SEED] * len(TEXTS))
    for text, piece in zip(TEXTS, pieces, strict=True):
        print(f"{workdir}: {text}")
        display(piece)
    return [np.atleast_2d(piece.waveform)[0] for piece in pieces]


before = listen("runs/base")

# %% [markdown]
# ## Prepare
#
# The recordings become codes of the checkpoint's codec, once. Files that cannot be used are counted, and named in
# `data/mine/tokens/rejects.jsonl`.

# %%
config = configs.load("finetune_musicgen")  # `audiolm config` explains every key
config.seed = SEED
config.corpus.path = RECORDINGS
prepared = runs.prepare(config, Path("data/mine"))
for split, found in prepared["splits"].items():
    print(f"{split}: {found['utterances']} recordings, {found['seconds']:.0f} s")

# %% [markdown]
# ## Train
#
# Only the adapters are trained: two narrow matrices beside each one of the attention, of `RANK` columns. The base stays
# as it is. After an interruption the same cell goes on from the last checkpoint.

# %%
frames = round(SECONDS * prepared["frame_rate"])
config.data.sequence_length = frames + prepared["codebooks"]  # with the delays
config.data.batch_size = BATCH
config.training.steps = STEPS
config.training.log_every = max(STEPS // 50, 1)
config.training.checkpoint_every = max(STEPS // 4, 1)
config.optimizer.learning_rate = LEARNING_RATE
config.optimizer.warmup = min(STEPS // 10, 100)
config.lora.rank = RANK
runs.train(config, Path("data/mine"), Path("runs/tuned"))

# %%
log = evaluate.training_log(Path("runs/tuned"))
_, axes = plt.subplots(figsize=(9, 2.4), layout="constrained")
axes.plot([line["step"] for line in log], [line["loss"] for line in log], marker=".")
axes.set(xlabel="step", ylabel="loss, nats per code", title="training")
plt.show()

# %% [markdown]
# ## After
#
# The same texts from the same seeds. A training loss that goes on falling while the pieces sound more and more like
# single recordings means that they are learnt by heart: take fewer steps or more recordings.

# %%
after = listen("runs/tuned")

rate = prepared["sample_rate"]
figure, axes = plt.subplots(len(TEXTS), 2, figsize=(10, 2.4 * len(TEXTS)), layout="constrained", squeeze=False)
for row, text in enumerate(TEXTS):
    for column, (when, waveforms) in enumerate({"before": before, "after": after}.items()):
        axes[row, column].specgram(waveforms[row], NFFT=1024, noverlap=512, Fs=rate, cmap="magma")
        axes[row, column].set(title=f"{when}: {text}", xlabel="seconds", ylabel="Hz")
plt.show()

# %% [markdown]
# ## Export
#
# Writes the adapters into the weights and saves the layout that the checkpoint came in, for `audiolm_jax.load` and for
# `transformers`. To keep it, download the folder, or copy it to a mounted drive.

# %%
published.export_run("runs/tuned", "musicgen-tuned")
for path in sorted(Path("musicgen-tuned").iterdir()):
    print(f"{path.stat().st_size / 1e6:8.1f} MB  {path}")
