"""Codecs: waveform <-> codes. One file per codec, chosen by name from the plain dict `CODECS`.

The contract of a codec file is one function,

    load(path=None, codebooks=None) -> codec

`path` names the weights (None: those that ship with the package), `codebooks` keeps only the first so many
codebooks (None: all). The codec it returns has

    name, fingerprint    str; the fingerprint is the sha256 of weights and config. It is the same however many
                         codebooks are kept, because the codes of a prefix of the codebooks are a prefix.
    sample_rate          Hz
    hop                  samples per frame
    frame_rate           frames per second = sample_rate / hop (float)
    codebooks            Q, the number of codebooks that encode returns
    codebook_size        K, codes are 0 .. K-1
    delay                samples by which decoded speech lags behind its source: decode(encode(x))[n] ~ x[n - delay]

    frames(samples)                     -> T = ceil(samples / hop)
    encode(waveform_BN float32)         -> codes_BTQ int32, T = frames(N); codebook 0 is the coarsest
    decode(codes_BTQ)                   -> waveform_BN float32, N = T * hop; the first q <= Q codebooks suffice
    encode_init(batch) -> state         encode_step(state, waveform_BN) -> (codes_BTQ, state), N a multiple of hop
    decode_init(batch) -> state         decode_step(state, codes_BTQ)   -> (waveform_BN, state), any T >= 1

Arrays that come back are numpy arrays, states are pytrees. Every function also takes one utterance without
the batch axis (`[N]`, `[T, Q]`) except the streaming steps. Promises, checked for every codec by the tests:

- causal: code t depends on samples before (t + 1) * hop only, so right padding never changes earlier frames and
  the codes of a prefix are a prefix of the codes; sample n of a decoded waveform depends on frames <= n // hop;
- the streaming steps, in chunks of any size, give what the whole-utterance functions give (same codes, the
  same waveform up to float rounding; bit for bit in chunks of `block` frames, which is how the whole is done);
- bad input raises `InputError`: NaN or infinite audio, no audio, no frames, codes out of range, too many codebooks,
  missing or truncated weights.
"""

from pathlib import Path

from audiolm_jax.codecs import frame, tiny
from audiolm_jax.errors import InputError

CODECS = {"default": frame, "tiny": tiny}


def load(name: str, path: str | Path | None = None, codebooks: int | None = None):
    """The codec called `name`, with weights from `path` (None: its own) and the first `codebooks` codebooks."""
    if name not in CODECS:
        raise InputError(f"codec: {name!r} is not known; known codecs are {', '.join(sorted(CODECS))}")
    return CODECS[name].load(path=path, codebooks=codebooks)
