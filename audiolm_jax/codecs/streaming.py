"""A codec from its networks: complete signals, batches of unequal lengths, streams, hours of audio in constant memory.

A codec file writes each direction (encode, decode) as a chain of stages, and hands both to `Codec`:

    Carry    a causal network with a streaming state: the outputs for chunks are exactly the output for the signal.
    Window   a network that sees `left` frames back and `right` frames ahead. Chunks are taken with that context, and
             the outputs of the context are dropped.

The network of a stage is a function

    run(weights, x [B, F * unit_in, ...], n_B, tape) -> y [B, F * unit_out, ...]

that is compiled: jax.numpy only, no branches on values, and at the top level of its module (programs are cached by
it). weights: any pytree, modules included. n_B: valid positions (not frames) of each row in the chunk; more than the
chunk has if the row goes on. tape: the streaming state. For every layer that remembers something, `run` calls
`tape.take(initial state)` and `tape.leave(next state)`, in the same order for every chunk.

Chunks have few sizes, so few shapes are compiled, and memory does not grow with the length of a signal. A complete
signal and a stream run the same programs.
"""

import dataclasses
import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from audiolm_jax.codecs import checks
from audiolm_jax.model import versions

ROWS = 64  # rows per call, or fewer by a power of two
LONG = 1024  # frames of a signal that pass all stages before the next ones enter
ENDLESS = 1 << 40  # length of a row whose end is not known yet


@functools.partial(jax.jit, static_argnums=(0, 1))
def _call(run, tree, leaves, x, n_B, pasts, first):
    tape = Tape(pasts, first)
    return run(jax.tree.unflatten(tree, leaves), x, n_B, tape), tape.next


@dataclasses.dataclass(frozen=True)
class Stage:
    """A network as in the docstring of this module."""

    run: Callable
    weights: Any
    unit_in: int = 1
    unit_out: int = 1

    @functools.cached_property
    def program(self) -> Callable:
        """(x, n_B, pasts, first) -> (y, pasts). Flattening the weights once saves a millisecond in every call."""
        leaves, tree = jax.tree.flatten(self.weights)
        return functools.partial(_call, self.run, tree, leaves)


@dataclasses.dataclass(frozen=True)
class Carry(Stage):
    """A causal network, in chunks that carry its streaming state on."""

    sizes: tuple[int, ...] = (32, 8, 1)  # frames of a chunk, largest first
    start: int = 1  # smallest number of frames of the first chunk
    shapes: dict = dataclasses.field(default_factory=dict, compare=False)  # cache: rows -> shapes of the state

    def init(self) -> dict:
        return {"pasts": None, "waiting": None, "done": 0}

    def blank(self, x: np.ndarray, n_B: np.ndarray) -> Any:
        """A zero state for the first chunk, so that it runs the same compiled program as later ones."""
        if len(x) not in self.shapes:
            self.shapes[len(x)] = jax.eval_shape(self.program, x, n_B, None, True)[1]
        zeros = jax.tree.map(lambda like: np.zeros(like.shape, like.dtype), self.shapes[len(x)])
        return placed(zeros)  # as the program's output is, or the second chunk would compile it again

    def push(self, state: dict, x, ends_B: np.ndarray, last: bool, eager: bool) -> tuple[np.ndarray | None, dict]:
        """The next positions (complete frames unless last; None: no more) -> (the output that they complete, state).

        ends_B: total length of every row. eager: use small chunks at once instead of waiting for a large one.
        """
        waiting, pasts, done = joined(state["waiting"], x), state["pasts"], state["done"]
        pieces = []
        while waiting is not None and waiting.shape[1]:
            frames = -(-waiting.shape[1] // self.unit_in)
            sizes = [size for size in self.sizes if done or size >= self.start]
            if last:  # the last chunk may be larger than what is left: it is padded
                size = min((size for size in sizes if size >= frames), default=sizes[0])
            else:
                size = next((size for size in (sizes if eager else sizes[:1]) if size <= frames), 0)
            if not size:
                break
            piece, waiting = cut(waiting, size * self.unit_in)
            n_B = remaining(ends_B, done * self.unit_in, piece)
            pasts = self.blank(piece, n_B) if pasts is None else pasts
            y, pasts = self.program(piece, n_B, pasts, done == 0)
            pieces.append(np.asarray(y)[:, : min(size, frames) * self.unit_out])
            done += size
        return concatenated(pieces), {"pasts": pasts, "waiting": waiting, "done": done}


@dataclasses.dataclass(frozen=True)
class Window(Stage):
    """A network that looks ahead, in chunks with a context of `left` and `right` frames."""

    left: int = 0
    right: int = 0
    # Frames of a window, largest first, all above left + right. Closely spaced, as short signals are padded to one.
    sizes: tuple[int, ...] = (128, 112, 96, 80, 64, 56, 48, 40, 32)

    def init(self) -> dict:
        """Frames from `begin` on are buffered; those before `done` are emitted."""
        return {"around": None, "begin": 0, "done": 0}

    def push(self, state: dict, x, ends_B: np.ndarray, last: bool, eager: bool) -> tuple[np.ndarray | None, dict]:
        """See `Carry.push`."""
        around, begin, done = joined(state["around"], x), state["begin"], state["done"]
        pieces = []
        while around is not None:
            start, have = max(0, done - self.left), begin + -(-around.shape[1] // self.unit_in)
            # The end of the signal needs nothing after it.
            size = min((size for size in self.sizes if size >= have - start), default=self.sizes[0])
            stop = have if last and start + size >= have else min(have, start + size) - self.right
            if stop <= done or not (last or eager or size == self.sizes[0] <= have - start):
                break
            piece, _ = cut(around[:, (start - begin) * self.unit_in :], size * self.unit_in)
            y = np.asarray(self.program(piece, remaining(ends_B, start * self.unit_in, piece), None, True)[0])
            pieces.append(y[:, (done - start) * self.unit_out : (stop - start) * self.unit_out])
            done = stop
            drop = max(0, done - self.left) - begin
            around, begin = around[:, drop * self.unit_in :], begin + drop
        return concatenated(pieces), {"around": around, "begin": begin, "done": done}


class Tape:
    """The streaming states of the layers of a causal network, in the order in which the layers run."""

    def __init__(self, pasts: Sequence | None = None, first: jax.Array | bool = True):
        """pasts: `next` of the previous chunk; ignored if this chunk is the `first`, and None if there are none yet."""
        self.first = first
        self.next: list = []  # states for the next chunk; a traced `first` lets one program serve all chunks
        self._pasts = None if pasts is None else iter(pasts)

    def take(self, beginning):
        """This layer's streaming state; `beginning` on the first chunk."""
        if self._pasts is None:
            return beginning
        return jax.tree.map(lambda new, old: jnp.where(self.first, new, old), beginning, next(self._pasts))

    def leave(self, past) -> None:
        """Stores this layer's streaming state for the next chunk."""
        self.next.append(past)


def joined(before: np.ndarray | None, x: np.ndarray | None) -> np.ndarray | None:
    if before is None or x is None or not before.shape[1]:
        return before if x is None else x
    return np.concatenate([before, x], axis=1)


def cut(x: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(the first `count` positions, zero-padded if there are fewer; the rest)."""
    piece, missing = x[:, :count], count - x.shape[1]
    return np.pad(piece, [(0, 0), (0, missing), *[(0, 0)] * (x.ndim - 2)]) if missing > 0 else piece, x[:, count:]


def remaining(ends_B: np.ndarray, start: int, piece: np.ndarray) -> np.ndarray:
    """Remaining length of every row from `start` on, clipped to the chunk + 1."""
    return np.broadcast_to(np.clip(ends_B - start, 0, piece.shape[1] + 1).astype(np.int32), (len(piece),))


def concatenated(pieces: list[np.ndarray]) -> np.ndarray | None:
    return np.concatenate(pieces, axis=1) if pieces else None


@dataclasses.dataclass(frozen=True)
class About:
    """The attributes of a codec; see the contract in `audiolm_jax.codecs`."""

    name: str
    fingerprint: str
    sample_rate: int
    hop: int
    codebooks: int
    codebook_size: int
    delay: int = 0
    channels: int = 1
    block: int = 1

    @property
    def frame_rate(self) -> float:
        return self.sample_rate / self.hop


class Codec:
    """The functions and attributes of the contract in `audiolm_jax.codecs`, from two chains of stages."""

    def __init__(self, about: About, encoder: tuple, decoder: tuple, config: object = None):
        """encoder: waveforms [B, N, channels] -> int32 codes [B, T, Q], cut to the leading `about.codebooks`.

        decoder: int32 codes [B, T, about.codebooks], -1 for an absent codebook -> waveforms [B, T * hop, channels].
        config: what writing the codec to a file takes.
        """
        vars(self).update(vars(about))
        self.frame_rate, self.config = about.frame_rate, config
        self._encoder, self._decoder = encoder, decoder
        self._warming = threading.Lock()

    def frames(self, samples: int) -> int:
        return -(-int(samples) // self.hop)

    def samples(self, frames: int) -> int:
        return frames * self.hop

    def encode(self, waveform_BN, samples_B=None) -> np.ndarray:
        audio_BNC, alone = checks.waveform(waveform_BN, self.channels)
        ends_B = checks.lengths(samples_B, *audio_BNC.shape[:2], "samples")
        codes_BTQ = self._run(self._encoder, audio_BNC, ends_B, self.hop, 1)[..., : self.codebooks]
        return codes_BTQ[0] if alone else codes_BTQ

    def decode(self, codes_BTQ, frames_B=None) -> np.ndarray:
        grid, alone = checks.codes(codes_BTQ, self.codebooks, self.codebook_size)
        ends_B = checks.lengths(frames_B, *grid.shape[:2], "frames")
        waveform = as_output(self._run(self._decoder, grid, ends_B, 1, self.hop))
        return waveform[0] if alone else waveform

    def encode_init(self, batch: int) -> tuple:
        return 0, [stage.init() for stage in self._encoder]

    def encode_step(self, state: tuple, waveform_BN) -> tuple[np.ndarray, tuple]:
        audio_BNC, _ = checks.waveform(waveform_BN, self.channels, multiple_of=self.hop)
        codes, state = self._push(self._encoder, state, audio_BNC, None, False)
        codes = np.zeros((len(audio_BNC), 0, self.codebooks), np.int32) if codes is None else codes
        return codes[..., : self.codebooks], state

    def encode_end(self, state: tuple, waveform_BN=None) -> np.ndarray | None:
        audio_BNC = None if waveform_BN is None else checks.waveform(waveform_BN, self.channels)[0]
        codes = self._push(self._encoder, state, audio_BNC, None, True)[0]
        return None if codes is None else codes[..., : self.codebooks]

    def decode_init(self, batch: int) -> tuple:
        return 0, [stage.init() for stage in self._decoder]

    def decode_step(self, state: tuple, codes_BTQ) -> tuple[np.ndarray, tuple]:
        grid, _ = checks.codes(codes_BTQ, self.codebooks, self.codebook_size)
        waveform, state = self._push(self._decoder, state, grid, None, False)
        waveform = np.zeros((len(grid), 0, self.channels), np.float32) if waveform is None else waveform
        return as_output(waveform), state

    def decode_end(self, state: tuple, codes_BTQ=None) -> np.ndarray | None:
        grid = None if codes_BTQ is None else checks.codes(codes_BTQ, self.codebooks, self.codebook_size)[0]
        waveform = self._push(self._decoder, state, grid, None, True)[0]
        return None if waveform is None else as_output(waveform)

    def warm(self, frames: int) -> None:
        """Compiles what a stream of chunks of `frames` frames runs. No `Window`: its size depends on the length.

        A second thread waits for the first: jax would compile the same program in both.
        """
        with self._warming:
            if all(isinstance(stage, Carry) for stage in self._decoder):
                self.decode_step(self.decode_init(1), np.zeros((1, frames, self.codebooks), np.int32))

    def _run(self, stages: tuple, x: np.ndarray, ends_B: np.ndarray, unit_in: int, unit_out: int) -> np.ndarray:
        """A complete signal through a chain, LONG frames at a time, in groups of rows; zero after the end of a row."""
        batch, count = x.shape[:2]
        result, long = None, LONG * unit_in
        for rows in row_groups(batch):
            state, done = (0, [stage.init() for stage in stages]), 0
            for start in range(0, count, long):
                last = start + long >= count
                y, state = self._push(stages, state, x[rows, start : start + long], ends_B[rows], last, eager=False)
                if y is None:
                    continue
                if result is None:
                    result = np.zeros((batch, -(-count // unit_in) * unit_out, y.shape[2]), y.dtype)
                place = result[rows[0] : rows[-1] + 1, done : done + y.shape[1]]
                place[:] = y[: len(place)]
                done += y.shape[1]
        for row, end in zip(result, -(-ends_B // unit_in) * unit_out, strict=True):
            row[end:] = 0
        return result

    @staticmethod
    def _push(stages: tuple, state: tuple, x, ends_B: np.ndarray | None, last: bool, eager: bool = True) -> tuple:
        """The next positions through a chain. ends_B: the length of every row; None: not known before `last`."""
        seen, before = state
        seen += 0 if x is None else x.shape[1]
        if ends_B is None:
            ends_B = np.asarray(seen if last else ENDLESS)
        after = []
        with own_mesh():
            for stage, past in zip(stages, before, strict=True):
                x, past = stage.push(past, x, ends_B, last, eager)
                after.append(past)
                ends_B = -(-ends_B // stage.unit_in) * stage.unit_out
        return x, (seen, after)


def as_output(waveform_BNC: np.ndarray) -> np.ndarray:
    """[B, N, channels] -> [B, N] for mono, [B, channels, N] for stereo, clipped to [-1, 1]."""
    clipped = np.clip(waveform_BNC, -1, 1, out=waveform_BNC if waveform_BNC.flags.writeable else None)
    return clipped[..., 0] if clipped.shape[2] == 1 else clipped.swapaxes(1, 2)


def row_groups(rows: int) -> list[np.ndarray]:
    """Row indices in groups of at most ROWS; the last group repeats its last row up to a power of two."""
    groups = []
    for start in range(0, rows, ROWS):
        size = 1 << (min(ROWS, rows - start) - 1).bit_length()
        groups.append(np.minimum(np.arange(start, start + size), rows - 1))
    return groups


def own_mesh():
    """A mesh of the first local device: codecs and encoders run on one device, whatever mesh the caller has entered."""
    device = jax.local_devices()[:1]
    return jax.set_mesh(jax.make_mesh((1,), ("codec",), (jax.sharding.AxisType.Auto,), devices=device))


def placed(arrays: Any) -> Any:
    """numpy arrays on the device of the current mesh, without a program that moves them."""
    return jax.device_put(arrays, jax.NamedSharding(versions.mesh(), jax.P()))
