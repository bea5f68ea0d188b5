"""`audiolm codec`: recordings to files of codes and back, piece by piece, so that memory does not grow with length.

NAME.npz    codes [T, Q] uint16, and what is needed to decode them: codec, path, codebooks, fingerprint, sample_rate,
            channels, frame_rate, samples (of the recording at sample_rate), scales [chunks] (EnCodec 48 kHz)
"""

import argparse
import contextlib
import itertools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from audiolm_jax import audio, codecs, files
from audiolm_jax.cli import arguments
from audiolm_jax.cli.arguments import local
from audiolm_jax.data.corpora import Reject, checks, sound
from audiolm_jax.errors import InputError, shortened

if TYPE_CHECKING:
    import soundfile

HELP = """
FILE.npz holds the codes [frames, codebooks], and what is needed to decode them.

examples:
  audiolm codec info
  audiolm codec encode --out codes one.wav two.flac
  audiolm codec decode --out heard codes/one.npz codes/two.npz
  # a published codec: a folder with config.json and model.safetensors, or a repository and its revision
  audiolm codec encode --codec mimi --path kyutai/mimi@main --codebooks 8 --out codes one.wav
  audiolm codec decode --path kyutai/mimi@main --out heard codes/one.npz
"""

OPTIONAL = ("path", "codebooks", "scales")
FIELDS = {
    "codes": np.ndarray,
    "codec": str,
    "path": str,
    "codebooks": int,
    "fingerprint": str,
    "sample_rate": int,
    "channels": int,
    "frame_rate": float,
    "samples": int,
    "scales": np.ndarray,
}
PIECE_SECONDS = 10.0  # read, encoded or decoded at once
MOST_CHANNELS = 2


def add(parser: argparse.ArgumentParser) -> None:
    *names, last = codecs.CODECS
    parser.add_argument("action", choices=("encode", "decode", "info"), help="what to do")
    parser.add_argument(
        "files", nargs="*", type=local, metavar="FILE", help="recordings; for decode, what encode wrote"
    )
    parser.add_argument("--codec", metavar="NAME", help=f"{', '.join(names)} or {last}")
    parser.add_argument("--path", metavar="WEIGHTS", help="folder, safetensors file, or repository owner/name@revision")
    parser.add_argument("--codebooks", type=int, metavar="Q", help="use the first Q codebooks (default: all)")
    parser.add_argument("--out", type=local, metavar="DIR", help="where to write (default: beside every file)")


def run(options: argparse.Namespace) -> None:
    """Describes a codec and files, or encodes or decodes the files.

    Raises InputError if no file is named, or naming every file that failed.
    """
    arguments.no_overrides(options, "audiolm codec takes no configuration; see its --help")
    out = options.out and arguments.writable(options.out, "--out")
    if options.action == "info":
        codec = codecs.load(options.codec or "default", options.path, options.codebooks)
        print(summary(codec))
        for path in options.files:
            print(describe(path, codec))
        return
    if not options.files:
        raise InputError(f"codec {options.action}: name at least one file")
    problems = convert(options, out)
    if problems:
        done = len(options.files) - len(problems)
        raise InputError(f"{done} of {len(options.files)} files are done; {'; '.join(problems)}")


def load_codes(path: str | Path) -> dict[str, Any]:
    """The content of a file of codes. Raises InputError if the file is not one."""
    remedy = "give what `audiolm codec encode` wrote"
    with files.reading(f"{path}:", "an npz file", remedy=remedy):
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        content = {name: value.item() if value.ndim == 0 else value for name, value in arrays.items()}
    missing = sorted(FIELDS.keys() - content.keys() - set(OPTIONAL))
    if missing:
        raise InputError(f"{path}: holds no {', '.join(missing)}; {remedy}")
    for name, kind in FIELDS.items():
        value = content.get(name)
        fits = isinstance(value, kind) and not (kind is int and not 0 < value < 2**62)
        if name in content and not fits:
            raise InputError(f"{path}: holds {name}={shortened(repr(value), 40)}, which is unusable; {remedy}")
    codes_TQ, scales = content["codes"], content.get("scales", np.zeros(0, np.float32))
    if codes_TQ.ndim != 2 or not codes_TQ.size or codes_TQ.dtype.kind not in "ui":
        raise InputError(f"{path}: holds codes of shape {codes_TQ.shape} and type {codes_TQ.dtype}; {remedy}")
    if scales.ndim != 1 or scales.dtype.kind != "f" or not np.isfinite(scales).all():
        raise InputError(f"{path}: holds scales of shape {scales.shape} and type {scales.dtype}; {remedy}")
    return content


def encode(path: Path, out: Path, codec, weights: str | None, progress: Callable[[float], None]) -> None:
    """Encodes one recording into the file `out`. weights: what `codecs.load` took as `path`.

    progress: called with the seconds of audio that were encoded. Raises InputError for a recording that cannot be used.
    """
    state, pieces, samples = codec.encode_init(1), [], 0
    pending = np.zeros((1, codec.channels, 0), np.float32)
    for piece_CN in read(path, codec.sample_rate, codec.channels):
        samples += piece_CN.shape[1]
        pending = np.concatenate([pending, piece_CN[None]], axis=2)
        count = pending.shape[2] // codec.hop * codec.hop
        if count:
            codes, state = codec.encode_step(state, shaped(pending[..., :count], codec))
            pieces.append(codes)
            pending = pending[..., count:]
        progress(piece_CN.shape[1] / codec.sample_rate)
    tail = codec.encode_end(state, shaped(pending, codec) if pending.shape[2] else None)
    pieces += [] if tail is None else [tail]
    content = {
        "codes": np.concatenate(pieces, axis=1)[0].astype(np.uint16),
        "codec": codec.name,
        "path": weights or "",
        "codebooks": codec.codebooks,
        "fingerprint": codec.fingerprint,
        "sample_rate": codec.sample_rate,
        "channels": codec.channels,
        "frame_rate": codec.frame_rate,
        "samples": samples,
    }
    if isinstance(state, dict) and state.get("scales"):
        content["scales"] = np.concatenate(state["scales"], axis=1)[0]
    with files.writing(out), files.replacing(out) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **content)


def decode(path: Path, out: Path, codec, content: dict, progress: Callable[[float], None]) -> None:
    """Decodes a file of codes into `out` (wav, 16 bits), which is as long as the original recording."""
    codes_TQ, samples = content["codes"].astype(np.int32), int(content["samples"])
    if content["fingerprint"] != codec.fingerprint:
        raise InputError(
            f"{path}: is of codec {content['codec']!r} with fingerprint {content['fingerprint'][:12]}, "
            f"this one has {codec.fingerprint[:12]}; give the weights that encoded it"
        )
    chunks = -(-len(codes_TQ) // codec.block)
    if hasattr(codec, "encode_scaled") != ("scales" in content) or len(content.get("scales", ())) not in (0, chunks):
        raise InputError(f"{path}: holds no loudness of {chunks} chunks, or one that {codec.name} does not have")
    step = max(1, round(PIECE_SECONDS * codec.frame_rate / codec.block)) * codec.block
    skip, left = codec.delay, samples
    state = codec.decode_init(1) if "scales" not in content else codec.decode_init(1, content["scales"][None])
    with audio.writing_wav(out, codec.sample_rate, codec.channels) as file:
        for start in [*range(0, len(codes_TQ), step), None]:
            if start is None:
                waveform = codec.decode_end(state)
            else:
                waveform, state = codec.decode_step(state, codes_TQ[None, start : start + step])
            if waveform is None:
                continue
            piece = waveform[0][..., skip:][..., :left]
            skip = max(0, skip - waveform.shape[-1])
            left -= piece.shape[-1]
            file.write(piece)
            progress(piece.shape[-1] / codec.sample_rate)


def shaped(waveform_BCN: np.ndarray, codec) -> np.ndarray:
    """The waveform as the codec takes it: [B, N] of a mono codec, [B, C, N] of a stereo one."""
    return waveform_BCN[:, 0] if codec.channels == 1 else waveform_BCN


@contextlib.contextmanager
def recording(path: Path) -> Iterator["soundfile.SoundFile"]:
    """An open recording. Raises InputError if there is none, or if it cannot be read within the block."""
    import soundfile

    if not path.is_file():
        raise InputError(f"{path}: does not exist")
    with files.reading(f"{path}:", "a recording"), soundfile.SoundFile(path) as file:
        yield file


def read(path: Path, sample_rate: int, channels: int) -> Iterator[np.ndarray]:
    """A recording in pieces [channels, N] at `sample_rate`; stereo is averaged for mono, mono doubled for stereo.

    The same samples as `audiolm prepare` gives the codec. Raises InputError: it cannot be read, is damaged, has more
    than two channels, no samples, or samples that are not finite or in another encoding than it says.
    """
    import tqdm

    heard, count, levels = 0, 0, checks.Levels()
    try:
        with sound.opened(path) as file:
            if file.channels > MOST_CHANNELS:
                raise Reject(f"has {file.channels} channels; mono or stereo is needed, so mix it down first")
            deliver = sound.Delivery(file.samplerate, sample_rate, channels)
            for piece_NC in itertools.chain(sound.raw(file, PIECE_SECONDS), [np.zeros((0, file.channels), np.float32)]):
                heard += len(piece_NC)
                levels.add(np.clip(piece_NC, -1, 1))
                samples_NC = deliver(piece_NC, last=not len(piece_NC))
                count += len(samples_NC)
                if len(samples_NC):
                    yield samples_NC.T
    except Reject as reason:
        said = str(reason).replace("not readable as audio", "cannot be read as a recording")
        raise InputError(f"{path}: {said}") from None
    if not count:
        raise InputError(f"{path}: {'too short to be resampled' if heard else 'holds no samples'}")
    if doubt := levels.doubt():
        tqdm.tqdm.write(f"audiolm: {path}: {doubt}", file=sys.stderr)


def describe(path: Path, codec) -> str:
    """One line about a recording or a file of codes."""
    if path.suffix == ".npz":
        content = load_codes(path)
        frames, books = content["codes"].shape
        return (
            f"{path}: {frames} frames of {books} codes by {content['codec']} ({content['fingerprint'][:12]}), "
            f"{content['samples'] / content['sample_rate']:.2f} s at {content['sample_rate']} Hz"
        )
    with recording(path) as file:
        frames = codec.frames(round(file.frames * codec.sample_rate / file.samplerate))
        return (
            f"{path}: {file.frames / file.samplerate:.2f} s at {file.samplerate} Hz, {file.channels} channels, "
            f"{file.subtype}; {frames} frames of {codec.codebooks} codes by {codec.name}"
        )


def summary(codec) -> str:
    """Name, rates and sizes of a codec, a line each."""
    bits = codec.frame_rate * codec.codebooks * np.log2(codec.codebook_size)
    lines = {
        "codec": codec.name,
        "fingerprint": codec.fingerprint,
        "sample rate": f"{codec.sample_rate} Hz, {'mono' if codec.channels == 1 else 'stereo'}",
        "frames": f"{codec.frame_rate:g} per second, {codec.hop} samples each",
        "codebooks": f"{codec.codebooks} of {codec.codebook_size} codes: {bits / 1000:.2f} kbit/s",
        "delay": f"{codec.delay} samples",
    }
    return "\n".join(f"{name:12s} {value}" for name, value in lines.items())


def trusted(path: Path, content: dict, options: argparse.Namespace) -> None:
    """Raises InputError if a file of codes asks for a module or a repository: only the caller may have them."""
    name, weights = content["codec"], content.get("path")
    if not options.codec and name not in codecs.CODECS:
        raise InputError(f"{path}: is of codec {name!r}, which does not come with the package; name it with --codec")
    if not options.path and weights and not Path(weights).expanduser().exists():
        raise InputError(
            f"{path}: was made with the weights {weights}, which are no file here; a repository or another place is "
            "asked only if you name it: --path"
        )


def convert(options: argparse.Namespace, out: Path | None) -> list[str]:
    """Encodes or decodes files into the folder `out`. Returns one sentence for every file that could not be used.

    For decoding, a file names its codec, weights and codebooks itself where the options do not.
    """
    import tqdm

    action, paths, problems, codec, loaded = options.action, options.files, [], None, None
    suffix = ".npz" if action == "encode" else ".wav"
    targets = [(out or path.parent) / f"{path.stem}{suffix}" for path in paths]
    same = [str(path) for path, target in zip(paths, targets, strict=True) if targets.count(target) > 1]
    if same:
        raise InputError(f"{' and '.join(same)} would be written to one file; give them one by one")
    with tqdm.tqdm(unit="s", unit_scale=True, desc=action) as bar:
        for path, target in zip(paths, targets, strict=True):
            try:
                if os.path.realpath(target) == os.path.realpath(path):
                    raise InputError(f"{path}: would be overwritten; give another folder with --out")
                content = load_codes(path) if action == "decode" else {}
                name = options.codec or content.get("codec") or "default"
                weights = options.path or content.get("path") or None
                if action == "decode":
                    trusted(path, content, options)
                codebooks = content.get("codebooks") if options.codebooks is None else options.codebooks
                if loaded != (name, weights, codebooks):
                    codec, loaded = codecs.load(name, weights, codebooks), (name, weights, codebooks)
                if action == "encode":
                    encode(path, target, codec, weights, bar.update)
                else:
                    decode(path, target, codec, content, bar.update)
            except InputError as error:
                said = str(error)
                problems.append(said if said.startswith(str(path)) else f"{path}: {said}")
    return problems
