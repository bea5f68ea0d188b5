"""Log-probabilities over legal sets, the training loss, and its sums per kind of prediction.

A prediction's `head` (see `serialization/vocab.py`) says which ids are legal; every other id has probability zero. The
output matrix is read as three blocks (text and structure, codebooks, lengths), each block's log-normaliser is computed
once per position, and every prediction takes that of its head. Logits are float32, of `chunk` positions at a time. Of a
large text vocabulary only the predictions of text are computed (`_text_apart`).
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from audiolm_jax.model import sharding
from audiolm_jax.model.config import table_rows
from audiolm_jax.model.sharding import PRESETS, Rules
from audiolm_jax.model.transformer import Transformer
from audiolm_jax.serialization.vocab import END_AUDIO, HEAD_CODE, HEAD_LENGTH, HEAD_NONE, HEAD_TEXT, Vocab

# Largest number of float32 logits in memory at once, per device.
CHUNK_LOGITS = 1 << 25


def by_codebook(x_V: jax.Array, vocab: Vocab) -> jax.Array:
    """The ids of codes, `[..., V]` -> `[..., Q, K]`; 0 beyond the last code of a smaller codebook."""
    if vocab.legal_QK.all():
        codes = x_V[..., vocab.code_start : vocab.length_start]
        return codes.reshape(*x_V.shape[:-1], vocab.codebooks, vocab.largest_codebook)
    books = jnp.split(x_V[..., : vocab.length_start], vocab.code_offsets, axis=-1)[1:]
    padding = [(0, 0)] * (x_V.ndim - 1)
    return jnp.stack([jnp.pad(x, [*padding, (0, vocab.largest_codebook - x.shape[-1])]) for x in books], axis=-2)


def output_blocks(out_DV: jax.Array, vocab: Vocab, rules: Rules) -> dict[str, jax.Array]:
    """The output matrix split into "text" [D, X], "codes" [D, Q, K], "length" [D, M] and gathered over "embed".

    K, the size of the largest codebook, keeps the vocabulary's mesh axis if that divides it; the small blocks are
    replicated. It is split before the gather, so that the gradient of each block is reduce-scattered by itself.
    """
    stored = jax.sharding.reshard(out_DV, rules.spec("embed", None))
    codes_DQK = by_codebook(stored, vocab)
    even = vocab.largest_codebook % rules.parts("vocab", jax.sharding.get_abstract_mesh()) == 0
    last = "vocab" if even else None
    return {
        "text": jax.sharding.reshard(stored[:, : vocab.code_start], rules.spec(None, None)),
        "codes": jax.sharding.reshard(codes_DQK, rules.spec(None, None, last)),
        "length": jax.sharding.reshard(stored[:, vocab.length_start : vocab.extra_start], rules.spec(None, None)),
    }


def _pick(values: jax.Array, index: jax.Array) -> jax.Array:
    """values `[..., n]` at index `[..., S]` -> `[..., S]`, 0 where the index is not in 0..n-1 (a masked sum)."""
    hit = index[..., None] == jnp.arange(values.shape[-1], dtype=jnp.int32)
    return jnp.sum(jnp.where(hit, values[..., None, :], 0), axis=-1)


def _with_end(lse_BLS, code_BLS, end_BL, targets_BLS, heads_BLS, vocab: Vocab) -> dict[str, jax.Array]:
    """The result of `target_logprobs` from log-normalisers and target logits that leave out the end of audio."""
    either = heads_BLS == vocab.head_code_or_end
    is_end = either & (targets_BLS == END_AUDIO)
    end_BLS = jnp.broadcast_to(end_BL[..., None], heads_BLS.shape)
    lse_either_BLS = jnp.logaddexp(lse_BLS, end_BLS)
    logprob_BLS = jnp.where(is_end, end_BLS, code_BLS) - jnp.where(either, lse_either_BLS, lse_BLS)
    split_BLS = jnp.where(is_end, end_BLS, lse_BLS) - lse_either_BLS
    none = heads_BLS == 0
    return {
        "logprob_BLS": jnp.where(none, 0.0, logprob_BLS),
        "end_BLS": jnp.where(either, split_BLS, 0.0),
        "lse_BLS": jnp.where(none, 0.0, jnp.where(either, lse_either_BLS, lse_BLS)),
    }


def _dense(hidden_BLD, blocks, targets_BLS, heads_BLS, vocab: Vocab, rules: Rules) -> dict[str, jax.Array]:
    """The logits of every block at every position, for any sharding."""

    def logits(block: str, spec: tuple) -> jax.Array:
        weight = blocks[block].astype(hidden_BLD.dtype)
        axes = "QK" if weight.ndim == 3 else "K"
        return jnp.einsum(
            f"BLD,D{axes}->BL{axes}",
            hidden_BLD,
            weight,
            preferred_element_type=jnp.float32,
            out_sharding=rules.spec("batch", None, *spec),
        )

    sharded = jax.typeof(blocks["codes"]).sharding.spec[2] is not None
    text = logits("text", (None,))
    codes = logits("codes", (None, "vocab" if sharded else None))
    length = logits("length", (None,))
    lse_text = jax.nn.logsumexp(jnp.where(vocab.legal_text, text, -jnp.inf), axis=-1)
    if not vocab.legal_QK.all():
        codes = jnp.where(vocab.legal_QK, codes, -jnp.inf)
    lse_codes = jax.nn.logsumexp(codes, axis=-1)
    lse_length = jax.nn.logsumexp(length, axis=-1)
    single = (x[..., None] for x in (jnp.zeros_like(lse_text), lse_text, lse_length))
    lse_BLH = jnp.concatenate([*single, lse_codes, lse_codes[..., :1]], axis=-1)
    ids_QK = vocab.code_offsets[:, None] + jnp.arange(vocab.largest_codebook, dtype=jnp.int32)
    hit = (targets_BLS[..., None, None] == ids_QK) & vocab.legal_QK
    target = jnp.sum(jnp.where(hit, codes[:, :, None], 0), axis=(-2, -1))
    target += _pick(text, targets_BLS) + _pick(length, targets_BLS - vocab.length_start)
    return _with_end(_pick(lse_BLH, heads_BLS), target, text[..., END_AUDIO], targets_BLS, heads_BLS, vocab)


def _on_cpu(hidden_BLD, targets_BLS, heads_BLS, blocks, vocab: Vocab, rules: Rules) -> dict[str, jax.Array]:
    """The legal logits of every prediction alone; on one CPU device (see `kernels/cpu_loss.py`)."""
    from audiolm_jax.model.kernels import cpu_loss

    stream = rules.spec("batch", "length", None)
    blocks = {name: jax.sharding.reshard(x, P()) for name, x in blocks.items()}  # whole, also under tensor rules
    sets_XWD = [blocks["text"].T, blocks["length"].T, *blocks["codes"].transpose(1, 2, 0)]
    sizes = [vocab.code_start, vocab.max_frames, *vocab.codebook_sizes]
    legal_XW = np.arange(max(sizes)) < np.array(sizes)[:, None]
    legal_XW[0, : vocab.code_start] = vocab.legal_text
    weight_XWD = jnp.stack([jnp.pad(w, ((0, max(sizes) - len(w)), (0, 0))) for w in sets_XWD])
    starts_X = np.array([0, vocab.length_start, *vocab.code_offsets], np.int32)
    sets_BLS = jnp.where(heads_BLS == vocab.head_code_or_end, HEAD_CODE, heads_BLS) - HEAD_TEXT
    start_BLS = _pick(jnp.broadcast_to(starts_X, (1, 1, len(starts_X))), sets_BLS)
    # </audio> as the target of a code comes out negative: it is not in the codebook, `_with_end` adds it.
    lse, target = cpu_loss.normalisers(
        hidden_BLD.reshape(-1, hidden_BLD.shape[-1], out_sharding=P()),
        weight_XWD.astype(hidden_BLD.dtype),
        legal_XW,
        sets_BLS.reshape(-1, sets_BLS.shape[-1], out_sharding=P()),
        (targets_BLS - start_BLS).reshape(-1, sets_BLS.shape[-1], out_sharding=P()),
    )
    lse_BLS, target_BLS = (jax.sharding.reshard(x.reshape(heads_BLS.shape), stream) for x in (lse, target))
    end_D = blocks["text"][:, END_AUDIO].astype(hidden_BLD.dtype)
    end_BL = jnp.einsum("BLD,D->BL", hidden_BLD, end_D, preferred_element_type=jnp.float32)
    return _with_end(lse_BLS, target_BLS, end_BL, targets_BLS, heads_BLS, vocab)


def target_logprobs(
    hidden_BLD: jax.Array,
    out_DV: jax.Array,
    targets_BLS: jax.Array,
    heads_BLS: jax.Array,
    vocab: Vocab,
    rules: Rules = PRESETS["data"],
    chunk: int | None = None,
) -> dict[str, jax.Array]:
    """log p(target | legal set) in nats, float32, 0 where head is 0.

    Returns `logprob_BLS`; `end_BLS`, its part about the end of audio where the head has one (log p(end) if the target
    is the end, else log p(not the end); 0 elsewhere), so that `logprob - end` is the code's own conditional
    log-probability; and `lse_BLS`, the log-normaliser.
    `chunk`: positions whose logits are in memory at once (None: by size, or in blocks on one CPU). Targets must be
    legal.
    """
    if vocab.text_apart:
        return _text_apart(hidden_BLD, out_DV, targets_BLS, heads_BLS, vocab, rules, chunk)
    blocks = output_blocks(out_DV, vocab, rules)
    stream = rules.spec("batch", "length", None)
    args = [jax.sharding.reshard(x, stream) for x in (hidden_BLD, targets_BLS, heads_BLS)]
    if chunk is None and sharding.on_one_cpu():
        return _on_cpu(*args, blocks, vocab, rules)
    # Each device chunks its own rows and positions; the gradient of the output matrix is all-reduced once, after the
    # last chunk. The vocabulary's axis stays explicit inside.
    logits = sum(math.prod(jax.typeof(x).sharding.shard_shape(x.shape)[1:]) for x in blocks.values())
    compute = functools.partial(_chunked, vocab=vocab, rules=Rules(vocab=rules.vocab), chunk=chunk, logits=logits)
    mapped = {*rules.axes("batch"), *rules.axes("length")}
    if mapped:
        compute = jax.shard_map(compute, in_specs=(stream, stream, stream, P()), out_specs=stream, axis_names=mapped)
    return compute(*args, blocks)


def _text_apart(hidden_BLD, out_DV, targets_BLS, heads_BLS, vocab: Vocab, rules: Rules, chunk: int | None):
    """`target_logprobs` of codes over `vocab.without_text`, and of text where there is any, a block of predictions at a
    time: their number is not known when this is compiled."""
    from audiolm_jax.model.kernels import cpu_loss

    rest, stream = vocab.without_text, rules.spec("batch", "length", None)
    hidden_BLD, targets_BLS, heads_BLS = (jax.sharding.reshard(x, stream) for x in (hidden_BLD, targets_BLS, heads_BLS))
    is_text_BLS = heads_BLS == HEAD_TEXT
    stored_DV = jax.sharding.reshard(out_DV, rules.spec("embed", None))
    moved_BLS = jnp.where(targets_BLS < vocab.code_start, targets_BLS, targets_BLS - vocab.code_start + rest.code_start)
    moved_BLS, other_BLS = (jnp.where(is_text_BLS, 0, x) for x in (moved_BLS, heads_BLS))
    found = target_logprobs(hidden_BLD, without_text(stored_DV, vocab), moved_BLS, other_BLS, rest, rules, chunk)

    def words(hidden_BLD, targets_BLS, is_text_BLS, text_DX):
        sets_BLS = jnp.where(is_text_BLS, 0, -1)
        rows = (x.reshape(-1, x.shape[-1]) for x in (hidden_BLD, sets_BLS, targets_BLS))
        hidden_ND, sets_NS, targets_NS = rows
        weight_1XD = text_DX.T[None].astype(hidden_ND.dtype)
        out = cpu_loss.normalisers(hidden_ND, weight_1XD, vocab.legal_text[None], sets_NS, targets_NS)
        return tuple(x.reshape(targets_BLS.shape) for x in out)

    # Each device takes its own positions, with plain arrays.
    words = jax.shard_map(words, in_specs=(stream, stream, stream, P()), out_specs=(stream, stream), check_vma=False)
    text_DX = jax.sharding.reshard(stored_DV[:, : vocab.code_start], P())
    lse_BLS, target_BLS = words(hidden_BLD, targets_BLS, is_text_BLS, text_DX)
    return {
        **found,
        "logprob_BLS": jnp.where(is_text_BLS, target_BLS - lse_BLS, found["logprob_BLS"]),
        "lse_BLS": jnp.where(is_text_BLS, lse_BLS, found["lse_BLS"]),
    }


def without_text(out_DV: jax.Array, vocab: Vocab) -> jax.Array:
    """The columns of an output matrix, as stored, that `vocab.without_text` has."""
    if not vocab.text_apart:
        return out_DV
    kept = [out_DV[:, : vocab.without_text.code_start], out_DV[:, vocab.code_start :]]
    count = sum(x.shape[1] for x in kept)
    return jnp.pad(jnp.concatenate(kept, axis=1), ((0, 0), (0, table_rows(count) - count)))


def _chunked(hidden_BLD, targets_BLS, heads_BLS, blocks, vocab: Vocab, rules: Rules, chunk: int | None, logits: int):
    """`_dense` in chunks of positions (None: by size, with `logits` numbers per position on this device)."""
    rows, positions = hidden_BLD.shape[:2]
    if chunk is None:
        chunk = max(1, CHUNK_LOGITS // (rows * logits))
        chunk = -(-positions // -(-positions // chunk))  # as equal as possible, for little padding
    if chunk >= positions:
        return _dense(hidden_BLD, blocks, targets_BLS, heads_BLS, vocab, rules)
    count = -(-positions // chunk)

    def chunks(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, ((0, 0), (0, count * chunk - positions)) + ((0, 0),) * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(rows, count, chunk, *x.shape[2:]), 1, 0)

    # Without the checkpoint the backward pass would keep the logits of all chunks.
    compute = jax.checkpoint(lambda xs: _dense(xs[0], blocks, xs[1], xs[2], vocab, rules), prevent_cse=False)
    parts = jax.lax.map(compute, tuple(map(chunks, (hidden_BLD, targets_BLS, heads_BLS))))
    return jax.tree.map(
        lambda x: jnp.moveaxis(x, 0, 1).reshape(rows, count * chunk, *x.shape[3:])[:, :positions], parts
    )


class Scored(NamedTuple):
    """Predictions and what `target_logprobs` gives for them, all [B, L, S] for any L and S."""

    targets_BLS: jax.Array
    heads_BLS: jax.Array
    weights_BLS: jax.Array
    logprob_BLS: jax.Array
    end_BLS: jax.Array
    lse_BLS: jax.Array
    share: float | jax.Array = 1.0  # every prediction stands for so many


def score(
    hidden_BLD: jax.Array, out_DV: jax.Array, batch: dict[str, jax.Array], vocab: Vocab, rules: Rules = PRESETS["data"]
) -> Scored:
    """All predictions of a batch, from the hidden states of their positions."""
    names = ("targets_BLS", "heads_BLS", "weights_BLS")
    given = {name: jax.sharding.reshard(batch[name], rules.spec("batch", "length", None)) for name in names}
    silent_BLS = (given["heads_BLS"] == HEAD_TEXT) & (given["weights_BLS"] == 0)  # text that nothing counts
    heads_BLS = jnp.where(silent_BLS, HEAD_NONE, given["heads_BLS"])
    out = target_logprobs(hidden_BLD, out_DV, given["targets_BLS"], heads_BLS, vocab, rules)
    return Scored(**given, **out)


def scored(
    model: Transformer,
    hidden_BLD: jax.Array,
    batch: dict[str, jax.Array],
    vocab: Vocab,
    key: jax.Array | None = None,
    fraction: float = 1.0,
) -> list[Scored]:
    """All predictions of a batch by a model: of all streams at once or, with a depth network, of the first one and of
    the others.

    fraction: of the positions of every row, drawn without replacement with `key`, that the depth network scores; each
    stands for 1 / fraction of them, so that sums keep their expectation.
    """
    rules = model.rules
    if model.depth is None:
        return [score(hidden_BLD, model.output_DV(), batch, vocab, rules)]
    from audiolm_jax.model.depth import logprobs  # late: most models have no depth network

    names = ("targets_BLS", "heads_BLS", "weights_BLS")
    first = {name: batch[name][..., :1] for name in names}
    heads_BL1 = jax.sharding.reshard(first["heads_BLS"], rules.spec("batch", "length", None))
    own_BL1 = jnp.where(heads_BL1 == vocab.head_of_end, HEAD_CODE, heads_BL1)
    first["heads_BLS"] = jnp.where(heads_BL1 == vocab.head_code_or_end, vocab.first.head_code_or_end, own_BL1)
    moved = vocab.code_start - vocab.first.code_start
    first["targets_BLS"] = jnp.where(
        first["targets_BLS"] >= vocab.code_start, first["targets_BLS"] - moved, first["targets_BLS"]
    )
    parts = [score(hidden_BLD, model.output_DV(), first, vocab.first, rules)._replace(heads_BLS=heads_BL1)]
    rows = [
        jax.sharding.reshard(x, rules.spec("batch", "length", None)) for x in (hidden_BLD, *(batch[n] for n in names))
    ]
    share = 1.0
    if fraction < 1:
        rows, share = _drawn(rows, key, fraction, rules)
    hidden_BMD, targets_BMS, heads_BMS, weights_BMS = rows
    out = logprobs(model.depth, model.embedding_VD[...], hidden_BMD, targets_BMS, heads_BMS, vocab)
    out["end_BLS"] = jnp.zeros_like(out["lse_BLS"])
    rest = (x[..., 1:] for x in (targets_BMS, heads_BMS, weights_BMS))
    parts.append(Scored(*rest, **out, share=share))
    # A frame that is the end is about nothing else.
    return [
        part._replace(end_BLS=jnp.where(part.heads_BLS >= vocab.head_of_end, part.logprob_BLS, part.end_BLS))
        for part in parts
    ]


def of_codebook(heads_BLS: jax.Array, q: int, vocab: Vocab) -> jax.Array:
    """Which predictions are of codebook q; one that may be the end is of codebook 0, those of a frame that is the end
    are of none."""
    either, last = heads_BLS == vocab.head_code_or_end, heads_BLS == vocab.head_not_end
    return (heads_BLS == HEAD_CODE + q) | (either & (q == 0)) | (last & (q == vocab.codebooks - 1))


def _drawn(rows: list[jax.Array], key: jax.Array, fraction: float, rules: Rules) -> tuple[list[jax.Array], float]:
    """A fraction of the positions of arrays [B, L, X], the same of all, and how many each stands for."""
    batch, length = rows[0].shape[:2]
    parts = rules.parts("length", jax.sharding.get_abstract_mesh())
    count = -(-math.ceil(fraction * length) // parts) * parts
    noise_BL = jax.random.uniform(key, (batch, length), out_sharding=rules.spec("batch", None))
    at_BM = jnp.argsort(noise_BL, axis=1)[:, :count]
    whole = [jax.sharding.reshard(x, rules.spec("batch", None, None)) for x in rows]
    taken = [jnp.take_along_axis(x, at_BM[..., None], axis=1) for x in whole]
    return [jax.sharding.reshard(x, rules.spec("batch", "length", None)) for x in taken], length / count


def loss_and_sums(parts: Sequence[Scored], vocab: Vocab, z_loss: float = 0.0) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Unnormalised loss sum(weights * nll) + z_loss * sum(weights * lse^2), and the sums behind the metrics.

    Divide by `sums["weight"]` for the loss (separate, so that gradient accumulation weighs every prediction alike).
    `sums`: weight (scalar), and per class of prediction `nll_X` (nats, unweighted) and `count_X` with X = text, length,
    Q codebooks, end: `[3 + Q]`. A prediction of codebook 0 that could have been the end counts in both: its end part
    under `end`, the rest under its codebook (no count if it was the end). A frame that is the end is one of `end`; that
    the others are not it counts under their codebooks. The z-loss is PaLM's (arXiv 2204.02311,
    section 5).
    """
    totals, sums = zip(*(_loss_and_sums(part, vocab, z_loss) for part in parts), strict=True)
    return sum(totals), jax.lax.stop_gradient(jax.tree.map(lambda *x: sum(x), *sums))


def _loss_and_sums(part: Scored, vocab: Vocab, z_loss: float) -> tuple[jax.Array, dict[str, jax.Array]]:
    targets, heads, weights, logprob, end, lse, share = part
    total = -jnp.sum(weights * logprob)
    if z_loss:
        total += z_loss * jnp.sum(weights * jnp.square(lse))
    either = heads == vocab.head_code_or_end
    is_end = (either & (targets == END_AUDIO)) | (heads >= vocab.head_of_end)
    kind = jnp.where(either, HEAD_CODE, heads)
    kind = jnp.where(heads == vocab.head_not_end, HEAD_CODE + vocab.codebooks - 1, kind)
    kind -= HEAD_TEXT  # text, length, codebooks: 0, 1, 2..
    classes = jnp.arange(HEAD_LENGTH + vocab.codebooks, dtype=jnp.int32)
    counted = weights > 0
    member = (kind[..., None] == classes) & (counted & ~is_end)[..., None]
    own = jnp.where(either, logprob - end, logprob)
    nll = -jnp.sum(jnp.where(member, own[..., None], 0), axis=(0, 1, 2))
    count = jnp.sum(member, axis=(0, 1, 2), dtype=jnp.float32)
    end_nll = -jnp.sum(jnp.where(counted, end, 0))
    end_count = jnp.sum(counted & (either | (heads == vocab.head_of_end)), dtype=jnp.float32)
    sums = {"weight": jnp.sum(weights), "nll_X": jnp.append(nll, end_nll), "count_X": jnp.append(count, end_count)}
    return share * total, jax.tree.map(lambda x: share * x, sums)


def class_names(vocab: Vocab) -> list[str]:
    """Names of the classes X of `loss_and_sums`."""
    return ["text", "length", *(f"codebook_{q}" for q in range(vocab.codebooks)), "end"]
