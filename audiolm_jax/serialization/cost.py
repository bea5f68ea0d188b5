"""The cost of an order: passes, positions, FLOPs, cache bytes and look-ahead, from the order of any strategy.

Generating one audio segment is a list of sequential passes of the network. The prompt's pass comes first; it predicts
position 0 of the causal levels, or the number of frames if there is none. Then one pass for each later position of the
causal levels, then `iterations` passes over all frames for every other codebook. The keys and values of the prompt are
computed once. If the order needs a depth network, a position of the causal levels takes up to Q - 1 passes of that
after its own, the last one for its last cell.

FLOPs (a multiply-add counts as two; norms, softmax, rotations and the embedding's sum are left out, as is usual: Kaplan
et al., arXiv 2001.08361, section 2.1; PaLM, arXiv 2204.02311, appendix B):

    forward  = positions * 2 * block weights  +  pairs * 4 * layers * heads * head_width  +  logits * 2 * D
    training = 3 * forward                                                      (recomputation is not counted)

where `pairs` are the visible (query, key) pairs, so a causal row of L positions has L (L + 1) / 2, less those that a
sliding window hides: masked attention is no useful work. The depth network of a position with c cells after the first
adds

    positions * 2 * block weights  +  pairs * 4 * layers * heads * head_width  +  c * 2 * d * K  +  p * 2 * D * d

in its own sizes: c positions, or c + 1 if the state of the transformer is one of them (join=prefix), and p
projections, of that state and of embeddings. A prediction of a causal pass, of a length or of a training row
has logits over the whole vocabulary (`Vocab.without_text`), with a depth network over text and codebook 0; a level
pass multiplies with the head of its codebook alone, K logits per frame. `model` below is a ModelConfig (or anything
with its sizes).
"""

import dataclasses

import numpy as np

from audiolm_jax.serialization import Grid, layout
from audiolm_jax.serialization.vocab import Vocab


@dataclasses.dataclass(frozen=True)
class Pass:
    """One pass of the network over one row."""

    positions: int  # computed
    pairs: int  # visible (query, key)
    predictions: int  # positions with logits over the whole vocabulary
    of_level: int = 0  # positions with logits of codebook `level`
    level: int = 0
    cells: int = 0  # of the depth network, per prediction


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of generating `frames` frames of one row after a prompt."""

    frames: int
    steps: int  # of the order, the end of audio included
    passes: int  # sequential passes of the network, the prompt's included
    depth_passes: int  # those of the depth network between them
    look_ahead: int  # frames after frame 0 that have a cell once frame 0 is complete
    first_passes: int  # passes until frame 0 is complete
    positions: int  # computed in all passes
    flops: int  # forward FLOPs of all passes
    cache_bytes: int  # keys and values kept between passes


def causal_positions(grid: Grid, frames: int) -> int:
    """Positions of the causal pass, the end of audio included; 0 if no codebook has one."""
    return len(layout.causal_cells(grid, frames)[0]) if grid.causal_levels else 0


def steps(grid: Grid, frames: int) -> int:
    """Steps of the order, the end of audio and passes with nothing left to predict included."""
    if not grid.causal_levels:
        return sum(grid.iterations)
    return int(np.max(grid.order(*layout.causal_indices(grid, frames), frames))) + 1 + sum(grid.iterations)


def generation(grid: Grid, frames: int, prompt: int, window: int = 0) -> list[Pass]:
    """The sequential passes that generate `frames` frames after `prompt` positions (BOS, text, <audio>).
    window: model.window.

    Raises InputError for a segment of no frames.
    """
    layout.require_frames(frames)
    cells_L = _cells_in_turn(grid, frames)
    passes = [Pass(prompt, causal_pairs(prompt, window), 1, cells=cells_L[0])]
    for positions, cells in enumerate(cells_L[1:], start=prompt + 1):
        passes.append(Pass(1, min(positions, window or positions), 1, cells=cells))
    for level, count in enumerate(grid.iterations, start=grid.causal_levels):
        passes += [Pass(frames, _level_pairs(frames, prompt, window), 0, frames, level)] * count
    return passes


def training_rows(grid: Grid, frames: int, prompt: int, window: int = 0) -> dict[str, Pass]:
    """The kinds of training rows of a strategy, "causal" and "level", of one segment after `prompt` positions. window:
    model.window."""
    layout.require_frames(frames)
    rows = {}
    if grid.causal_levels:
        length = prompt + causal_positions(grid, frames)
        pairs, cells = causal_pairs(length, window), (grid.codebooks - 1) * grid.depth
        rows["causal"] = Pass(length, pairs, length, cells=cells)
    if grid.causal_levels < grid.codebooks:
        length = prompt + frames
        pairs = causal_pairs(prompt, window) + _level_pairs(frames, prompt, window)
        rows["level"] = Pass(length, pairs, length)
    return rows


def _cells_in_turn(grid: Grid, frames: int) -> list[int]:
    """Passes of the depth network at each position of the causal pass: up to its last stream with a cell."""
    if not grid.depth:
        return [0] * max(1, causal_positions(grid, frames))
    frame_LS, _ = layout.causal_cells(grid, frames)
    return [int(np.max(np.flatnonzero(frame_S >= 0), initial=0)) for frame_S in frame_LS]


def look_ahead(grid: Grid, frames: int) -> int:
    """Frames after frame 0 that have a cell once frame 0 is complete."""
    step_TQ = layout.order_TQ(grid, frames)
    return int(np.flatnonzero((step_TQ <= step_TQ[0].max()).any(axis=1))[-1])


def _first_passes(grid: Grid, frames: int) -> int:
    """Passes until frame 0 is complete, the prompt's included."""
    if grid.causal_levels == grid.codebooks:
        return 1 + int(np.max(grid.position(0 * np.arange(grid.codebooks), np.arange(grid.codebooks), frames)))
    passes = max(1, causal_positions(grid, frames)) + sum(grid.iterations)
    return passes - steps(grid, frames) + 1 + int(layout.order_TQ(grid, frames)[0].max())


def cost(grid: Grid, frames: int, prompt: int, model, vocab: Vocab, bytes_per_value: int = 4) -> Cost:
    """The cost of one segment of `frames` frames after `prompt` positions.

    Raises InputError for a segment of no frames.
    """
    passes = generation(grid, frames, prompt, model.window)
    cached = prompt + kept(causal_positions(grid, frames), model.window)
    return Cost(
        frames=frames,
        steps=steps(grid, frames),
        passes=len(passes),
        depth_passes=sum(work.cells for work in passes),
        look_ahead=look_ahead(grid, frames),
        first_passes=_first_passes(grid, frames),
        positions=sum(work.positions for work in passes),
        flops=sum(forward_flops(model, vocab, work) for work in passes),
        cache_bytes=cached * cache_bytes_per_position(model, bytes_per_value),
    )


def block_weights(model) -> int:
    """Weights of all layers that multiply every position: queries, keys, values, output, feed-forward; of the
    cross-attention queries and output, as the encoder's states are few."""
    parts = 2 if model.mlp == "gated" else 1
    attention = model.width * model.head_width * (2 * model.heads + 2 * model.kv_heads)
    heads, _, head_width = model.cross_sizes
    attention += model.width * head_width * 2 * heads * (model.cross_width > 0)
    return model.layers * (attention + (parts + 1) * model.width * model.ffn)


def cache_bytes_per_position(model, bytes_per_value: int) -> int:
    return 2 * model.layers * model.kv_heads * model.head_width * bytes_per_value


def flops(model, positions: float, pairs: float, logits: float) -> float:
    """Forward FLOPs; the formula at the top of this file."""
    attention = 4 * pairs * model.layers * model.heads * model.head_width
    return 2 * positions * block_weights(model) + attention + 2 * model.width * logits


def depth_flops(model, cells: float, logits: float) -> float:
    """Forward FLOPs of the depth network of one position with so many cells after the first, and logits of codes."""
    c = model.depth
    count = cells + (c.join == "prefix")
    of_state = {"none": 0, "shared": 1, "per_codebook": cells}[c.projection]
    of_embeddings = cells if c.embeddings == "backbone" and c.projection != "none" else 0
    attention = 4 * count * (count + 1) / 2 * c.layers * c.heads * c.head_width
    projections = 2 * model.width * c.width * (of_state + of_embeddings)
    return 2 * count * block_weights(c.block) + attention + 2 * c.width * logits + projections


def forward_flops(model, vocab: Vocab, work: Pass) -> int:
    """Forward FLOPs of one pass, those of the depth network included."""
    vocab = vocab.without_text
    ids = vocab.size if model.depth is None else vocab.first.size
    logits = work.predictions * ids + work.of_level * vocab.codebook_sizes[work.level]
    own = flops(model, work.positions, work.pairs, logits)
    if not work.cells:
        return own
    return own + round(work.predictions * depth_flops(model, work.cells, work.cells * vocab.largest_codebook))


def training_flops_per_step(model, vocab: Vocab, batch: int, length: int, depth_fraction: float = 1.0) -> int:
    """FLOPs of one training step on `batch` causal rows of `length` positions: forward and twice that backward.

    This defines "equal training FLOPs", from sizes alone: padding and packed documents count as if a row were one
    document, every position as if it predicted over the whole vocabulary, level rows as if they were causal, so equal
    batches are equal work. The MFU of a training log counts the legal logits of predictions (`metrics.train_flops`).
    depth_fraction: of the positions, that the depth network computes.
    """
    one = forward_flops(model, vocab, Pass(length, causal_pairs(length, model.window), length))
    if model.depth is not None:
        cells = vocab.codebooks - 1
        one += round(depth_fraction * length * depth_flops(model, cells, cells * vocab.largest_codebook))
    return 3 * batch * one


def seconds_of_passes(
    passes: list[Pass], model, vocab: Vocab, flops_per_second: float, bytes_per_second: float, bytes_per_value: int = 4
) -> np.ndarray:
    """Predicted time of each pass: the longer of its arithmetic and of reading weights, keys and values.

    Roofline model of Williams et al. 2009 (doi 10.1145/1498765.1498785). No launch overhead, no codec: a floor.
    """
    per_pair = cache_bytes_per_position(model, bytes_per_value)

    def seconds(work: Pass) -> float:
        predicted = vocab.without_text
        ids = predicted.size if model.depth is None else predicted.first.size
        heads = ids * (work.predictions > 0) + vocab.codebook_sizes[work.level] * (work.of_level > 0)
        read = block_weights(model) + model.width * heads
        if work.cells:  # every pass of the depth network reads its weights again
            depth = model.depth
            read += work.cells * (block_weights(depth.block) + depth.width * vocab.largest_codebook)
        weights = bytes_per_value * read
        # Every position of a pass reads the same keys, so keys read are those one query sees.
        moved = weights + per_pair * work.pairs / work.positions
        return max(forward_flops(model, vocab, work) / flops_per_second, moved / bytes_per_second)

    return np.array([seconds(work) for work in passes])


def kept(positions: int, window: int) -> int:
    """Of so many generated positions, those whose keys and values the next one reads: with a window the last ones."""
    return min(positions, max(window - 1, 1)) if window else positions


def causal_pairs(positions: int, window: int) -> int:
    """Visible pairs of a causal row."""
    return _triangle(positions) - _triangle(_outside(positions, window))


def _level_pairs(frames: int, prompt: int, window: int) -> int:
    """Visible pairs of frames that see each other and, as far as the window goes, the prompt."""
    hidden = _triangle(_outside(prompt + frames, window)) - _triangle(_outside(prompt, window))
    return frames * (prompt + frames) - hidden


def _outside(positions: int, window: int) -> int:
    """Of so many positions, those that the last one does not see."""
    return max(0, positions - window) if window else 0


def _triangle(n: int) -> int:
    return n * (n + 1) // 2
