"""Rules on logits: pure functions, elementwise over every leading axis.

Every argument may be an array that broadcasts against `logits[..., 0]`: one value per row, per codebook, or both.
A filter that is switched off is None, so that the compiled program has no trace of it.

The order is that of transformers (`GenerationMixin._get_logits_processor`, which appends its processors in it):
guidance, repetition penalty, ids that are not legal, temperature, top-k, top-p, min-p. As there, the first three hold
for greedy draws too. Repetition-aware sampling looks at what was drawn, so it comes last.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from audiolm_jax.model import sharding


class Penalty(NamedTuple):
    """Of codes that were drawn before: float, 1 is off; the frames looked back over, 0 or None: all; the first frame
    that counts, None: 0."""

    factor: jax.Array
    window: jax.Array | None = None
    start: jax.Array | None = None


class Redraw(NamedTuple):
    """Codes that the last `window` frames (0: off) hold more than `most` times are drawn again."""

    window: jax.Array
    most: jax.Array


class LogitRules(NamedTuple):
    """temperature: 0 is greedy. top_k: int. top_p, min_p: float. suppressed: bool, with an axis of codes. Shapes as
    above; None is off."""

    temperature: jax.Array
    top_k: jax.Array | None = None
    top_p: jax.Array | None = None
    min_p: jax.Array | None = None
    suppressed: jax.Array | None = None
    penalty: Penalty | None = None
    redraw: Redraw | None = None

    def at(self, index: jax.Array) -> "LogitRules":
        """The rules [B, Q] of codebooks `index` [B, C] -> rules [B, C]."""

        def of_codebooks(x: jax.Array) -> jax.Array:
            return jnp.take_along_axis(x, index.reshape(*index.shape, *[1] * (x.ndim - 2)), axis=1)

        return jax.tree.map(of_codebooks, self)


class Past(NamedTuple):
    """What the rules of a cell look back at. codes [..., F]: int32, of its codebook, -1 in frames not yet drawn.
    frame [...]: of the cell. gumbel [..., V]: noise for another draw, None without `Redraw`."""

    codes: jax.Array
    frame: jax.Array
    gumbel: jax.Array | None = None

    def within(self, window: jax.Array | None, start: jax.Array | None = None) -> jax.Array:
        """The codes, -1 but for those of the `window` frames before the cell (None or 0: all), from `start` on."""
        t = jnp.arange(self.codes.shape[-1])
        seen = t < self.frame[..., None]
        if window is not None:
            first = jnp.where(window > 0, self.frame - window, 0)
            seen &= t >= first[..., None]
        if start is not None:
            seen &= t >= start[..., None]
        return jnp.where(seen, self.codes, -1)


def guide(conditional: jax.Array, unconditional: jax.Array, guidance: jax.Array) -> jax.Array:
    """u + g (c - u): classifier-free guidance (arXiv 2207.12598; AudioGen, arXiv 2209.15352, section 3.3).

    On raw logits, before any id is made illegal: an infinite logit on both sides would give NaN. A coefficient of 1
    gives c exactly, so that a row without guidance does not depend on the other rows.
    """
    guidance = jnp.asarray(guidance)[..., None]
    return jnp.where(guidance == 1, conditional, unconditional + guidance * (conditional - unconditional))


def suppress(logits: jax.Array, suppressed: jax.Array | None) -> jax.Array:
    """logits [..., V] with -inf for suppressed ids [..., K]; those from K on, such as the end, stay."""
    if suppressed is None:
        return logits
    after = logits.shape[-1] - suppressed.shape[-1]
    return jnp.where(jnp.pad(suppressed, [*[(0, 0)] * (suppressed.ndim - 1), (0, after)]), -jnp.inf, logits)


def penalise(logits: jax.Array, penalty: Penalty | None, past: Past | None) -> jax.Array:
    """Positive logits [..., V] of codes drawn before divided by the factor, negative ones multiplied: the repetition
    penalty of CTRL (arXiv 1909.05858, section 4.1), for negative logits as in transformers."""
    if penalty is None:
        return logits
    codes = past.within(penalty.window, penalty.start)
    # Written where they are, not compared with every id: on a CPU that takes longer than a step of a small model.
    codes = jnp.where(codes < 0, logits.shape[-1], codes)
    drawn = jnp.zeros(logits.shape, bool)
    drawn = jnp.put_along_axis(drawn, codes, True, axis=-1, inplace=False, mode="drop")
    factor = penalty.factor[..., None]
    return jnp.where(drawn, jnp.where(logits < 0, logits * factor, logits / factor), logits)


def likely(logits: jax.Array, min_p: jax.Array | None) -> jax.Array:
    """logits [..., V] with -inf where the probability is below min_p times the highest (arXiv 2407.01082); 0: all."""
    if min_p is None:
        return logits
    lowest = jnp.max(logits, axis=-1) + jnp.log(min_p)
    return jnp.where(logits >= lowest[..., None], logits, -jnp.inf)


def top(logits: jax.Array, top_k: jax.Array | None, top_p: jax.Array | None) -> jax.Array:
    """logits [..., V] with -inf outside the k most likely and, of those renormalised, the smallest set that holds
    probability p (nucleus sampling, arXiv 1904.09751). k of 0 and p of 1 keep all. Equal logits stay together.
    """
    if top_k is not None:
        needed = jnp.where(top_k > 0, top_k, logits.shape[-1])
        logits = _keep(logits, jnp.ones_like(logits), needed)
    if top_p is not None:
        nucleus = _keep(logits, jax.nn.softmax(logits, axis=-1), top_p)
        # Rounding may leave the sum of all below a p of 1.
        logits = jnp.where(jnp.asarray(top_p)[..., None] < 1, nucleus, logits)
    return logits


def _keep(logits: jax.Array, mass: jax.Array, needed: jax.Array, width: int | None = None) -> jax.Array:
    """The fewest of the highest logits whose `mass` sums to `needed`; -inf elsewhere.

    Their lowest value is computed `width` bits at a time, in the integers that order like floats: a few sums instead of
    a sort, which on a CPU takes ten times as long as a step of a small model. The default is by platform: the least
    work on a CPU, few kernels without a loop on an accelerator.
    """
    width = width or (1 if sharding.platform() == "cpu" else 4)
    bits = jax.lax.bitcast_convert_type(logits, jnp.uint32)
    top_bit = jnp.uint32(1 << 31)
    key = jnp.where(bits & top_bit, ~bits, bits | top_bit)
    digits = jnp.arange(1, 1 << width, dtype=jnp.uint32)

    def search(i: jax.Array, lowest: jax.Array) -> jax.Array:
        """`lowest` with its next digit: the number of higher digits that would still keep enough."""
        shift = (32 - width * (i + 1)).astype(jnp.uint32)
        higher = lowest[..., None] | (digits << shift)
        kept = jnp.sum(jnp.where(key[..., None, :] >= higher[..., None], mass[..., None, :], 0), axis=-1)
        digit = jnp.sum(kept >= jnp.asarray(needed)[..., None], axis=-1).astype(jnp.uint32)
        return lowest | (digit << shift)

    lowest = jnp.zeros(logits.shape[:-1], jnp.uint32)
    lowest = jax.lax.fori_loop(0, 32 // width, search, lowest, unroll=width > 1)
    return jnp.where(key >= lowest[..., None], logits, -jnp.inf)


def choose(logits: jax.Array, rules: LogitRules, gumbel: jax.Array, past: Past | None = None) -> jax.Array:
    """Ids [...] from logits [..., V] (-inf: illegal): drawn by the Gumbel-max trick; at temperature 0 the most likely.

    gumbel: standard Gumbel noise [..., V], from keys by row. past: needed by `penalty` and `redraw`. Suppressed ids are
    made illegal before (`suppress`).
    """
    temperature = jnp.asarray(rules.temperature)[..., None]
    penalised = penalise(logits, rules.penalty, past)
    scaled = top(penalised / jnp.where(temperature > 0, temperature, 1.0), rules.top_k, rules.top_p)
    scaled = likely(scaled, rules.min_p)
    drawn = jnp.argmax(jnp.where(temperature > 0, scaled + gumbel, penalised), axis=-1).astype(jnp.int32)
    return drawn if rules.redraw is None else _redrawn(drawn, logits, rules, past)


def _redrawn(drawn: jax.Array, logits: jax.Array, rules: LogitRules, past: Past) -> jax.Array:
    """Repetition-aware sampling (VALL-E 2, arXiv 2406.05370, section 4.2): what was drawn, or, where it repeats too
    much, a draw from the distribution of the model, without penalty, temperature and filters. Greedy draws stay.

    Higgs Audio 2 draws again from 2 times in 7 frames on, `most` of 1.
    """
    window, most = rules.redraw
    count = jnp.sum(past.within(window) == drawn[..., None], axis=-1)
    again = jnp.argmax(logits + past.gumbel, axis=-1).astype(jnp.int32)
    return jnp.where((window > 0) & (count > most) & (rules.temperature > 0), again, drawn)
