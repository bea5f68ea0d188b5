"""Codecs: waveform <-> codes. One file per codec, chosen by name from the plain dict `CODECS`.

To add a codec, write a module with the function

    load(path=None, codebooks=None) -> codec

and enter it in `CODECS`, or leave it outside of the package and name it by its import path
(`--config.codec.name=my_package.my_module`). `path` names the weights (None: those that ship with the codec),
`codebooks` is the number of leading codebooks to use (None: all).

`tiny.py` writes every function of a codec out, in numpy. A codec of JAX networks needs two functions, for encoding and
for decoding: `streaming.py` makes the rest of the contract of them, and `default.py` is an example. `checks.py` refuses
bad input in one sentence. For published weights see also `about` below and `hub/files.py`. The tests of the contract
run over `CODECS`, and over modules from outside:

    AUDIOLM_CODECS=my_package.my_module python -m pytest tests/contracts/codecs_test.py

A codec has

    name                 str, the key in `CODECS` or the import path: saved tokens are opened with it again
    fingerprint          str, the sha256 of weights and configuration (`files.digest`). It does not depend on the number
                         of codebooks in use: fewer codebooks give a prefix of the same codes.
    sample_rate          Hz
    channels             1 or 2. Mono waveforms are [B, N], stereo ones [B, 2, N]
    hop                  samples per frame (`encodec` at 48 kHz: see encodec_chunks.py)
    frame_rate           frames per second (float)
    codebooks            Q, the number of codebooks that encode returns
    codebook_size        K, codes are 0 .. K-1
    delay                samples by which decoded speech lags behind its source: decode(encode(x))[n] ~ x[n - delay]
    block                frames per chunk of `encode` and `decode`

    frames(samples)                             -> T = ceil(samples / hop)
    samples(frames)                             -> N = frames * hop
    encode(waveform_BN float32, samples_B=None) -> codes_BTQ int32, T = frames(N); codebook 0 is the coarsest
    decode(codes_BTQ, frames_B=None)            -> waveform_BN float32, N = samples(T); the first q <= Q codebooks do
                                                   samples_B, frames_B: the lengths of the rows, where they differ
    encode_init(batch) -> state   encode_step(state, waveform_BN) -> (codes_BTQ, state), N a multiple of hop
                                  encode_end(state, waveform_BN=None) -> codes_BTQ or None, N < hop
    decode_init(batch) -> state   decode_step(state, codes_BTQ) -> (waveform_BN, state), any T >= 1
                                  decode_end(state, codes_BTQ=None) -> waveform_BN or None

Results are numpy arrays, states are pytrees. Every function but the streaming steps also takes one utterance without
the batch axis (`[N]`, `[T, Q]`). The tests check for every codec:

- a row of a batch of unequal lengths gives what the row alone gives, and zeros after its end;
- the streaming steps, in chunks of any size, give together with the end what `encode` and `decode` give (the same
  codes, the same waveform up to float rounding). A step gives what is complete by then: `default`, `tiny`, `mimi`
  and `qwen3` give a frame for a frame; `encodec` at 24 kHz begins once it has seen seven frames; the others look ahead;
- `default`, `tiny`, `mimi`, `qwen3` are causal: code t depends on samples before (t + 1) * hop only, so right padding
  never changes earlier frames and the codes of a prefix are a prefix of the codes; sample n of a decoded waveform
  depends on frames <= n // hop. So is `encodec` at 24 kHz but for its first seven frames;
- memory does not grow with the length of a signal beyond its input and output;
- bad input raises `InputError`: NaN or infinite audio, no audio, no frames, codes out of range, too many codebooks,
  missing, truncated or pickled weights.
"""

import dataclasses
from pathlib import Path

from audiolm_jax import files
from audiolm_jax.config import key, plugin, validate
from audiolm_jax.errors import InputError

# Modules by name, imported when used: the published ones need `hub`, and the core does without it.
CODECS = {
    "default": "audiolm_jax.codecs.default",
    "tiny": "audiolm_jax.codecs.tiny",
    "encodec": "audiolm_jax.codecs.encodec",
    "encodec_stereo": "audiolm_jax.codecs.stereo",
    "dac": "audiolm_jax.codecs.dac",
    "mimi": "audiolm_jax.codecs.mimi",
    "qwen3": "audiolm_jax.codecs.qwen3",
}


@dataclasses.dataclass(frozen=True)
class CodecConfig:
    """The codec, from waveforms to codes and back."""

    name: str = key(
        "default",
        "default (neural, 16 kHz, 25 frames per second); encodec, encodec_stereo (a mono EnCodec for two channels), "
        "dac, mimi and qwen3 (published); tiny (a toy for tests, without weights).",
        among=CODECS,
    )
    path: str | None = key(
        None,
        "A folder with config.json and model.safetensors, the latter itself, or a repository owner/name@revision; "
        "None: the weights that ship with the package (default alone).",
    )
    codebooks: int | None = key(None, "Codebooks to keep, the coarsest first; None: all.", at_least=1)

    def __post_init__(self) -> None:
        validate(self, "codec")


def load(name: str, path: str | Path | None = None, codebooks: int | None = None):
    """The codec called `name`, with weights from `path` (None: its own) and the first `codebooks` codebooks.

    Raises InputError for an unknown name, weights that cannot be used, and codebooks that there are not.
    """
    if codebooks is not None and codebooks < 1:
        raise InputError(f"codec.codebooks={codebooks} must be at least 1; without it all are used")
    if path is not None:
        files.local(path, "codec.path")
    return plugin("codec.name", name, CODECS, ["load"]).load(path=path, codebooks=codebooks)


def about(name: str, path: str | Path | None = None, codebooks: int | None = None):
    """The attributes of a codec (`frame_rate`, `codebooks`, `codebook_size` ...); a published one needs no weights.

    The module of a published codec has `CHECKPOINTS`, a dict of repositories and their configurations, and a function
    `about(config, codebooks=None)`; a `path` that is not in the dict counts as its first one. Raises InputError.
    """
    module = plugin("codec.name", name, CODECS, ["load"])
    if not hasattr(module, "CHECKPOINTS"):
        return module.load(path=path, codebooks=codebooks)
    known = {repository.rpartition("/")[2]: config for repository, config in module.CHECKPOINTS.items()}
    config = known.get(str(path or "").partition("@")[0].rstrip("/").rpartition("/")[2], next(iter(known.values())))
    return module.about(config, codebooks=codebooks)
