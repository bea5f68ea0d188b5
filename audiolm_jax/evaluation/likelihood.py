"""Negative log-likelihood of held-out audio in bits per second, the one number that compares every order.

Every code counts once, tails included; no guidance, no padding, no temperature. The bits of the end of audio, of the
length and of the text are kept apart. What is computed follows from the order:

- Causal levels: one causal row. Where codebook 0 might have ended instead, -log p(code) splits without remainder into
  -log p(no end), which counts as end bits, and -log p(code | no end), which counts as code bits.
- Other levels, "exact": one row per pass of the order; the cells of that pass are scored, they and all later ones are
  hidden. Cells of one pass are independent given the rest, so the product is a normalised model of the codes.
- Other levels, "bound": where a level takes several passes, sampling reveals its cells in an order that depends on
  the model's confidence, under which no likelihood is tractable. What is reported instead is the any-order bound (Uria
  et al., arXiv 1310.1757, eq. 8; Hoogeboom et al., arXiv 2110.02037, eq. 4), for a level of n cells

      -log p(level | coarser) <= E over k ~ U{1..n} of n/k * sum over a random k-subset, hidden, of -log p(cell | rest)

  estimated by `draws` seeded subsets, the k of an utterance stratified over its draws, which leaves it unbiased.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from audiolm_jax.errors import InputError
from audiolm_jax.evaluation import intervals
from audiolm_jax.evaluation.config import METHODS
from audiolm_jax.model import losses, sharding, versions
from audiolm_jax.model.spec import require_depth
from audiolm_jax.model.transformer import Transformer
from audiolm_jax.sampling import requests
from audiolm_jax.serialization import Grid, LevelView, documents, layout
from audiolm_jax.serialization.documents import Document, Row
from audiolm_jax.serialization.vocab import HEAD_LENGTH, HEAD_TEXT, Vocab
from audiolm_jax.training import processes

SHORTEST = 32  # positions of the smallest bucket of rows


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """Bits of U utterances, each apart, as intervals need them."""

    tag: str  # exact | bound
    frame_rate: float  # frames per second
    frames_U: np.ndarray
    code_bits_UQ: np.ndarray
    code_variance_UQ: np.ndarray  # of the estimate of code_bits_UQ over draws; 0 where exact, nan if there is one draw
    end_bits_U: np.ndarray
    length_bits_U: np.ndarray
    text_bits_U: np.ndarray | None = None

    @property
    def seconds_U(self) -> np.ndarray:
        return self.frames_U / self.frame_rate

    @property
    def bits_per_second(self) -> float:
        """All code bits by all seconds: longer utterances weigh more, as in a corpus-level perplexity."""
        return float(self.code_bits_UQ.sum() / self.seconds_U.sum())

    @property
    def bits_per_second_Q(self) -> np.ndarray:
        return self.code_bits_UQ.sum(axis=0) / self.seconds_U.sum()

    @property
    def standard_error(self) -> float:
        """Standard error of `bits_per_second` over utterances, noise of the draws included; nan for one utterance."""
        return intervals.standard_error(self.code_bits_UQ.sum(axis=1), self.seconds_U)


@dataclasses.dataclass(frozen=True)
class _Piece:
    """A row to score, and the utterance and draw that its nats are added to.

    `counts`: the classes of prediction taken from this row, codebooks by number, then Q the end, Q + 1 the length,
    Q + 2 text. `scale`: the weight of its codes.
    """

    row: Row
    utterance: int
    counts: tuple[int, ...]
    scale: float = 1.0
    draw: int = 0


@dataclasses.dataclass(frozen=True)
class Scoring:
    """Options of the scoring. Raises InputError for an unknown method, no draws."""

    # Of levels without a causal pass. "exact": the fixed order of the grid. "bound": the any-order bound. "auto": exact
    # if each of these levels takes one pass, which leaves no order to choose; else the bound.
    method: str = "auto"
    draws: int = 4  # random subsets per utterance and level, for "bound"
    seed: int = 0  # of the subsets
    text: bool = False  # also count the bits of the text (meaningful only if text was trained)
    positions_per_batch: int | None = None  # padded positions computed at once (None: what suits the backend)

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(f"the likelihood method is {self.method!r}; it must be one of {', '.join(METHODS)}")
        if self.draws < 1:
            raise InputError(f"{self.draws} draws were asked for; there must be at least 1")


def likelihood(
    model: Transformer,
    grid: Grid,
    vocab: Vocab,
    utterances: Sequence[Document],
    frame_rate: float,
    scoring: Scoring = Scoring(),
    encoded: Sequence[np.ndarray] | None = None,
) -> Likelihood:
    """Bits of each utterance, a document whose audio segments are scored given everything before them.

    Args:
      model: with the parameters to evaluate (EMA or not is the caller's choice). Runs under the current mesh, whose
        processes must all call this with the same utterances.
      frame_rate: of the codec, frames per second.
      encoded: states [tokens, model.cross_width] of the text of each utterance, for a model that attends to them.

    Raises InputError for no utterances, one without audio, and a depth network too many or too few.
    """
    require_depth(model.config, grid)
    if not utterances:
        raise InputError("there are no utterances to evaluate; there must be at least 1")
    for number, document in enumerate(utterances):
        if not any(kind == "audio" for kind, _ in document):
            raise InputError(f"utterance {number} of those to evaluate has no audio segment")
    bound = scoring.method == "bound" or (scoring.method == "auto" and max(grid.iterations, default=1) > 1)
    if grid.causal_levels == grid.codebooks:
        bound = False
    Q, draws = grid.codebooks, scoring.draws if bound else 0
    pieces = [
        piece
        for number, document in enumerate(utterances)
        for piece in _pieces(number, document, grid, vocab, draws, scoring)
    ]
    states = None if encoded is None else [encoded[piece.utterance] for piece in pieces]
    nats_NC = score(model, vocab, [piece.row for piece in pieces], scoring.positions_per_batch, states)

    draws = draws or 1
    bits_UCJ = np.zeros((len(utterances), Q + 3, draws))
    for piece, nats_C in zip(pieces, nats_NC, strict=True):
        counts = list(piece.counts)
        scale_C = np.where(np.arange(Q + 3) < Q, piece.scale, 1)
        bits_UCJ[piece.utterance, counts, piece.draw] += (scale_C * nats_C)[counts] / np.log(2)
    variance_UC = np.zeros(bits_UCJ.shape[:2])
    if bound:
        sampled = slice(grid.causal_levels, Q)
        spread_UCJ = bits_UCJ[:, sampled]
        variance_UC[:, sampled] = spread_UCJ.var(axis=2, ddof=1) / draws if draws > 1 else np.nan
        bits_UCJ[:, sampled] /= draws
    bits_UC = bits_UCJ.sum(axis=2)
    frames_U = [sum(len(codes) for kind, codes in document if kind == "audio") for document in utterances]
    return Likelihood(
        tag="bound" if bound else "exact",
        frame_rate=frame_rate,
        frames_U=np.array(frames_U),
        code_bits_UQ=bits_UC[:, :Q],
        code_variance_UQ=variance_UC[:, :Q],
        end_bits_U=bits_UC[:, Q],
        length_bits_U=bits_UC[:, Q + 1],
        text_bits_U=bits_UC[:, Q + 2] if scoring.text else None,
    )


def _pieces(
    number: int, document: Document, grid: Grid, vocab: Vocab, draws: int, scoring: Scoring
) -> Iterator[_Piece]:
    """The rows of one utterance. `draws` 0 means the order's own passes."""
    Q = grid.codebooks
    end, length, words = Q, Q + 1, Q + 2
    if grid.causal_levels:
        counts = (*range(grid.causal_levels), end, *([words] if scoring.text else []))
        yield _Piece(documents.causal_row(document, grid, vocab, 1.0), number, counts)
    elif scoring.text:
        yield _Piece(documents.clean_row(document, grid, vocab, 1.0), number, (words,))
    for target, (kind, codes_TQ) in enumerate(document):
        if kind != "audio":
            continue
        rng = np.random.default_rng([scoring.seed, number, target])
        views = _subsets(len(codes_TQ), grid, draws, rng) if draws else _passes(len(codes_TQ), grid)
        # The length is predicted at <audio>, which sees no frame: every row of the segment predicts the same.
        length_class = (length,) if grid.causal_levels == 0 else ()
        for level, hidden_T, scored_T, scale, draw in views:
            row = documents.level_row(document, target, LevelView(level, hidden_T), grid, vocab, 1.0)
            row["weights"][-len(codes_TQ) :, level] *= scored_T
            yield _Piece(row, number, (level, *length_class), scale, draw)
            length_class = ()


def _passes(frames: int, grid: Grid) -> Iterator[tuple[int, np.ndarray, np.ndarray, float, int]]:
    """The passes of the order over the levels without a causal pass: level, hidden_T, scored_T, scale, draw."""
    step_TQ = layout.order_TQ(grid, frames)
    for level in range(grid.causal_levels, grid.codebooks):
        step_T = step_TQ[:, level]
        for step in np.unique(step_T):
            yield level, step_T >= step, step_T == step, 1.0, 0


def _subsets(
    frames: int, grid: Grid, draws: int, rng: np.random.Generator
) -> Iterator[tuple[int, np.ndarray, np.ndarray, float, int]]:
    """Random subsets of each level, `draws` of them: level, hidden_T, scored_T, scale n/k, draw."""
    for level in range(grid.causal_levels, grid.codebooks):
        for draw in range(draws):
            hidden = 1 + int((draw + rng.random()) / draws * frames)
            hidden_T = rng.permutation(frames) < hidden
            yield level, hidden_T, hidden_T, frames / hidden, draw


def score(
    model: Transformer,
    vocab: Vocab,
    rows: Sequence[Row],
    positions_per_batch: int | None = None,
    states: Sequence[np.ndarray] | None = None,
) -> np.ndarray:
    """Nats of each row by class of prediction, `[rows, Q + 3]`: codebooks, the end, the length, text.

    Predictions are weighted by the row's own `weights`. states: what each row attends to besides. Rows are padded to a
    few lengths, each compiled once.
    """
    # On a CPU what fits its caches is fastest (5 layers of 256: 4.4 s of processor time for 1024, 7.4 s for 4096).
    positions_per_batch = positions_per_batch or (1024 if sharding.platform() == "cpu" else 16384)
    graph, state = nnx.split(model)
    mesh = versions.mesh()
    devices = 1 if model.rules.batch is None else mesh.shape[model.rules.batch]
    lengths = sorted({requests.bucket(len(row["positions"]), SHORTEST) for row in rows})
    waiting: list[int] = []
    batches = []
    for length in lengths:
        waiting += [n for n, row in enumerate(rows) if requests.bucket(len(row["positions"]), SHORTEST) == length]
        size = devices * max(1, positions_per_batch // (length * devices))
        while len(waiting) >= size or (waiting and length == lengths[-1]):
            # A batch that would not be full waits for the next length: more padding, fewer empty rows.
            members, waiting = waiting[:size], waiting[size:]
            batch = _pad([rows[n] for n in members], length, size)
            if states is not None:
                row_states = [states[n] for n in members] + [states[0][:0]] * (size - len(members))
                batch["states_BEW"], batch["valid_BE"] = requests.padded(row_states)
            batch = {name: x[processes.columns(mesh, model.rules, size, 1)] for name, x in batch.items()}
            batches.append((members, _score(graph, state, sharding.shard_batch(batch, mesh, model.rules), vocab)))
    nats_NC = np.zeros((len(rows), vocab.codebooks + 3))
    for members, nats_BC in batches:
        nats_NC[members] = np.asarray(nats_BC)[: len(members)]
    return nats_NC


def _pad(rows: Sequence[Row], length: int, size: int) -> dict[str, np.ndarray]:
    """Rows -> a batch of `size` rows of `length` positions, segment 1 where there is something."""
    names = {"tokens": "BLS", "targets": "BLS", "heads": "BLS", "weights": "BLS", "positions": "BL", "ahead": "BL"}
    batch = {
        f"{name}_{axes}": np.zeros((size, length, *rows[0][name].shape[1:]), rows[0][name].dtype)
        for name, axes in names.items()
    }
    batch["segments_BL"] = np.zeros((size, length), np.int32)
    for b, row in enumerate(rows):
        count = len(row["positions"])
        batch["segments_BL"][b, :count] = 1
        for name, axes in names.items():
            batch[f"{name}_{axes}"][b, :count] = row[name]
    return batch


@functools.partial(jax.jit, static_argnums=(0, 3))
def _score(graph: nnx.GraphDef, state: nnx.State, batch: dict[str, jax.Array], vocab: Vocab) -> jax.Array:
    """Nats of each row by class of prediction, [B, Q + 3]."""
    model = nnx.merge(graph, state)
    encoded = (batch["states_BEW"], batch["valid_BE"]) if "states_BEW" in batch else None
    inputs = (batch[name] for name in ("tokens_BLS", "positions_BL", "segments_BL", "ahead_BL"))
    hidden_BLD = model(*inputs, encoded=encoded)
    parts = losses.scored(model, hidden_BLD, batch, vocab)

    def total(of: Callable[[losses.Scored], jax.Array]) -> jax.Array:
        return sum(jnp.sum(of(part), axis=(1, 2)) for part in parts)

    def nats(part: losses.Scored, member_BLS: jax.Array) -> jax.Array:
        own_BLS = part.logprob_BLS - part.end_BLS  # 0 where the target is the end
        return jnp.where(member_BLS, -part.weights_BLS * own_BLS, 0)

    codes_QB = [
        total(lambda part, q=q: nats(part, losses.of_codebook(part.heads_BLS, q, vocab)))
        for q in range(vocab.codebooks)
    ]
    others = [total(lambda part: -part.weights_BLS * part.end_BLS)]
    others += [total(lambda part, h=h: nats(part, part.heads_BLS == h)) for h in (HEAD_LENGTH, HEAD_TEXT)]
    nats_BC = jnp.stack(codes_QB + others, axis=1)
    return jax.sharding.reshard(nats_BC, jax.sharding.PartitionSpec(None, None))
