"""Documents to rows: the inputs and targets of every position.

A document is a tuple of segments in any order and number: ("text", ids_L), ("audio", codes_TQ), or ("states", x_EW),
vectors of an encoder that stand at positions as tokens do; ("given", ids_L2) and ("beside", ids_X) are those of the
framing `beside`. Its causal row is

    BOS  text ...  <audio>  steps of the strategy ...  text ...  <audio>  ...        inputs
    t    ...       <audio>  step 0  ...  </audio>      t                  EOS        predicted there

A level row predicts one codebook of one audio segment bidirectionally: the document up to that segment, then its
frames, one per position (hidden cells hold MASK), each seeing the whole segment; earlier audio is all visible.

    BOS  text ...  <audio>  frame 0 ... frame T-1
         text      length   cells of the level that are hidden, each at its own frame

Text and <audio> are causal, so neither the text nor the predicted length can see the frames.

These are rows of the framing `markers`; framing.py has the others.

A row is a dict of numpy arrays over its own L positions; data/batches.py packs rows into batches:

    tokens [L, S]   ids of the input, PAD where a stream is silent     targets [L, S]  id predicted here, or PAD
    heads [L, S]    legal set of the prediction (vocab.py)             weights [L, S]  weight in the loss
    positions [L]   position within the document                      ahead [L]       later positions that it sees
    (tokens [L, S + 1] with text beside the streams, `Grid.inputs`)
    states [L, W]   only of documents with states: vectors to add to the input, zeros elsewhere
"""

import numpy as np

from audiolm_jax.errors import InputError
from audiolm_jax.serialization import Grid, LevelView, layout
from audiolm_jax.serialization import vocab as ids
from audiolm_jax.serialization.vocab import Vocab

Document = tuple[tuple[str, np.ndarray], ...]
KINDS = ("text", "audio", "states", "given", "beside")
BESIDE = ("given", "beside")  # of the framing that has text beside its streams
Row = dict[str, np.ndarray]


class Builder:
    """Collects inputs and, by the position of their first, predictions."""

    def __init__(self, streams: int, texts: int = 0) -> None:
        """texts: tokens of a position beside those of the streams (`Grid.inputs`)."""
        self.streams, self.texts = streams, texts
        self.length = 0
        self.inputs: list[tuple[np.ndarray, np.ndarray]] = []
        self.vectors: list[tuple[int, np.ndarray]] = []
        self.beside: list[tuple[int, np.ndarray]] = []
        self.predictions: list[tuple[int, np.ndarray, np.ndarray, float]] = []

    def see(self, tokens, ahead=0) -> None:
        """Adds positions with these inputs: ids [n, S], or ids of stream 0."""
        tokens_LS = self._wide(tokens, ids.PAD)
        self.inputs.append((tokens_LS, np.broadcast_to(np.int32(ahead), len(tokens_LS))))
        self.length += len(tokens_LS)

    def see_states(self, states_EW: np.ndarray) -> None:
        """Adds positions with vectors and no token."""
        self.vectors.append((self.length, states_EW))
        self.see(np.full(len(states_EW), ids.PAD))

    def see_text(self, text_L: np.ndarray) -> None:
        """Puts text beside the streams of the next positions."""
        self.beside.append((self.length, text_L))

    def expect(self, targets, heads, weight: float, at: int) -> None:
        """Positions at, at + 1, ... predict `targets`, [n, S] or ids on stream 0; `heads` likewise, or one for all."""
        self.predictions.append((at, self._wide(targets, ids.PAD), self._wide(heads, ids.HEAD_NONE), weight))

    def then(self, tokens, heads, weight: float) -> None:
        """Adds positions with these inputs, each predicted by the position before it where it has a head."""
        tokens_LS, heads_LS = self._wide(tokens, ids.PAD), self._wide(heads, ids.HEAD_NONE)
        self.expect(np.where(heads_LS == ids.HEAD_NONE, ids.PAD, tokens_LS), heads_LS, weight, at=self.length - 1)
        self.see(tokens_LS)

    def _wide(self, values, fill: int) -> np.ndarray:
        values = np.atleast_1d(np.asarray(values, np.int32))
        if values.ndim == 2:
            return values
        wide_LS = np.full((len(values), self.streams), fill, np.int32)
        wide_LS[:, 0] = values
        return wide_LS

    def row(self) -> Row:
        row = {
            "tokens": np.concatenate([tokens for tokens, _ in self.inputs]),
            "targets": np.full((self.length, self.streams), ids.PAD, np.int32),
            "heads": np.full((self.length, self.streams), ids.HEAD_NONE, np.int32),
            "weights": np.zeros((self.length, self.streams), np.float32),
            "positions": np.arange(self.length, dtype=np.int32),
            "ahead": np.concatenate([ahead for _, ahead in self.inputs]),
        }
        for at, targets_LS, heads_LS, weight in self.predictions:
            span = slice(at, at + len(targets_LS))
            row["targets"][span], row["heads"][span] = targets_LS, heads_LS
            row["weights"][span] = weight * (heads_LS != ids.HEAD_NONE)
        if self.texts:
            text_L = np.full(self.length, ids.PAD, np.int32)
            for at, part_L in self.beside:
                text_L[at : at + len(part_L)] = part_L
            row["tokens"] = np.concatenate([row["tokens"], text_L[:, None]], axis=1)
        if self.vectors:
            row["states"] = np.zeros((self.length, self.vectors[0][1].shape[1]), np.float32)
        for at, states_EW in self.vectors:
            row["states"][at : at + len(states_EW)] = states_EW
        return row


def check(document: Document, grid: Grid, vocab: Vocab, opened: bool = False) -> None:
    """Raises InputError for an empty document, an unknown kind of segment, no or too many frames, codes of another
    grid, and kinds that the framing does not take. opened: an audio segment is to follow."""
    kinds = [kind for kind, _ in document] + ["audio"] * opened
    if not kinds:
        raise InputError("an empty document was given; it must have at least one segment")
    for kind, values in document:
        if kind not in KINDS:
            raise InputError(f"a segment of kind {kind!r} was given; it must be one of {', '.join(KINDS)}")
        if kind in BESIDE and not grid.framing.texts:
            raise InputError(
                f"a segment of kind {kind!r} was given; the framing {grid.framing.name!r} has no such text"
            )
        if kind in BESIDE and (values.ndim != (2 if kind == "given" else 1) or not len(values)):
            shape = "[positions, 2], ids of the first stream and of the text" if kind == "given" else "[steps]"
            raise InputError(f"a segment {kind!r} has shape {values.shape}; it must be {shape}, at least one")
        if kind == "states" and values.ndim != 2:
            raise InputError(f"states of shape {values.shape} were given; they must be [positions, width]")
        if kind == "audio":
            if values.ndim != 2 or values.shape[1] != grid.codebooks:
                raise InputError(f"codes of shape {values.shape} were given; they must be [frames, {grid.codebooks}]")
            if not 1 <= len(values) <= vocab.max_frames:
                raise InputError(f"an audio segment has {len(values)} frames; it must have 1..{vocab.max_frames}")
            grid.framing.check_codes(values)
    grid.framing.check(kinds)


def causal_row(document: Document, grid: Grid, vocab: Vocab, text_weight: float = 0.0) -> Row:
    """The row of the causal pass over the codebooks that have one."""
    return _document_row(document, grid, vocab, text_weight, causal=True)


def clean_row(document: Document, grid: Grid, vocab: Vocab, text_weight: float = 0.0) -> Row:
    """The row with all codes visible, in which only text is predicted."""
    return _document_row(document, grid, vocab, text_weight, causal=False)


def level_row(
    document: Document, target: int, view: LevelView, grid: Grid, vocab: Vocab, text_weight: float = 0.0
) -> Row:
    """The row that predicts the hidden cells of `view` in segment number `target` of the document.

    Where no codebook has a causal pass, the length of that segment is predicted at its <audio>.
    """
    check(document, grid, vocab)
    build = _segments(document[:target], grid, vocab, text_weight, causal=False)
    codes_TQ = document[target][1]
    grid.framing.open(build, vocab, text_weight)
    if grid.causal_levels == 0:
        build.expect(vocab.length_id(len(codes_TQ)), ids.HEAD_LENGTH, 1.0, at=build.length - 1)
    tokens_TQ, targets_TQ, heads_TQ = hide(codes_TQ, view, vocab)
    build.expect(targets_TQ, heads_TQ, 1.0, at=build.length)
    build.see(tokens_TQ, ahead=np.arange(len(codes_TQ))[::-1])
    return build.row()


def hide(codes_TQ: np.ndarray, view: LevelView, vocab: Vocab) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs, targets and heads, each [T, Q], of the frames of a level row."""
    T, Q = codes_TQ.shape
    code_ids_TQ = vocab.code_ids(codes_TQ)
    predicted_TQ = np.zeros((T, Q), bool)
    predicted_TQ[:, view.level] = view.masked_T
    hidden_TQ = predicted_TQ.copy()
    hidden_TQ[view.prompt :, view.level + 1 :] = True
    return (
        np.where(hidden_TQ, ids.MASK, code_ids_TQ),
        np.where(predicted_TQ, code_ids_TQ, ids.PAD),
        np.where(predicted_TQ, ids.HEAD_CODE + view.level, ids.HEAD_NONE),
    )


def beside_steps(text_X: np.ndarray, steps: int) -> np.ndarray:
    """The text beside the first steps of audio: its last token goes on after it."""
    return text_X[np.minimum(np.arange(steps), len(text_X) - 1)]


def training_row(
    document: Document,
    grid: Grid,
    vocab: Vocab,
    rng: np.random.Generator,
    text_weight: float = 0.0,
    drop_text: float = 0.0,
) -> Row:
    """One training row of a document, drawn by the strategy.

    With probability `drop_text` all but the audio is left out, which trains the unconditional branch of guidance. Of
    several audio segments a level row predicts one, drawn uniformly; with `text_weight` the text after the last one
    counts as a segment.
    """
    if rng.random() < drop_text:
        document = tuple(segment for segment in document if segment[0] == "audio") or document
    targets = [number for number, (kind, _) in enumerate(document) if kind == "audio"]
    if not targets or (document[-1][0] == "text" and text_weight > 0):
        targets.append(len(document))
    target = targets[int(rng.integers(len(targets)))]
    if target == len(document):
        return _document_row(document, grid, vocab, text_weight, causal=grid.causal_levels > 0)
    view = grid.draw(rng, len(document[target][1]))
    if view is None:
        return causal_row(document, grid, vocab, text_weight)
    return level_row(document, target, view, grid, vocab, text_weight)


def prompt_row(document: Document, grid: Grid, vocab: Vocab, causal: bool) -> Row:
    """The inputs of `document` (which may be empty) and of the opening of an audio segment to generate after it.

    causal: see `_segments`.
    """
    check(document, grid, vocab, opened=True)
    build = _segments(document, grid, vocab, 0.0, causal)
    grid.framing.open(build, vocab, 0.0)
    build.predictions.clear()
    return build.row()


def _document_row(document: Document, grid: Grid, vocab: Vocab, text_weight: float, causal: bool) -> Row:
    check(document, grid, vocab)
    build = _segments(document, grid, vocab, text_weight, causal)
    grid.framing.finish(build, text_weight)
    return build.row()


def _segments(document: Document, grid: Grid, vocab: Vocab, text_weight: float, causal: bool) -> Builder:
    """The beginning of the framing and every segment.

    causal: audio is in the layout of the causal pass, and predicted; otherwise a position is a frame, which sees its
    whole segment, and nothing of it is predicted.
    """
    build = Builder(grid.streams, grid.framing.texts)
    grid.framing.begin(build)
    for kind, values in document:
        if kind == "text":
            grid.framing.text(build, values, vocab, text_weight)
        elif kind == "states":
            build.see_states(values)
        elif kind == "given":
            build.see_text(values[:, 1])
            build.see(values[:, 0])
        elif kind == "beside":
            text_X = values
        else:
            grid.framing.open(build, vocab, text_weight)
            if causal:
                heads_LS = grid.framing.heads(layout.causal_heads(grid, len(values), vocab), values, vocab)
                if grid.framing.texts:
                    build.see_text(beside_steps(text_X, len(heads_LS)))
                build.then(layout.serialize(values, grid, vocab), heads_LS, 1.0)
            else:
                build.see(vocab.code_ids(values), ahead=np.arange(len(values))[::-1])
                build.see(grid.framing.end(vocab))
    return build
