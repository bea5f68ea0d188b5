"""How the codebooks learn: running means or gradients, a beginning by k-means, and a second life for dead codes.

The state of the codebooks is a dict:

    books    [Q, K, Z]  the codebooks
    share    [Q, K]     running share of the frames that use a code
    sum      [Q, K, Z]  running mean of the vectors assigned to a code (`means` only)
"""

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from audiolm_jax.codecs.quantizer import quantize

WAYS = ("means", "gradient")
DEAD = 0.05  # a code used less than this share of an even use is replaced by a random vector of the batch

# Part of every batch is decoded from a random number of leading codebooks, few ones more often: a language
# model may use only the first four, so these must be good by themselves.
PREFIXES = (1, 2, 3, 4, 6, 8, 12)
PREFIX_ODDS = (0.12, 0.18, 0.14, 0.22, 0.12, 0.13, 0.09)


def prefixes(rng: np.random.Generator, batch: int, codebooks: int, full: float) -> np.ndarray:
    """How many codebooks each row is decoded from: all for a share of `full`, a random prefix for the others."""
    count = round(batch * full)
    allowed = np.array(PREFIXES) < codebooks
    odds = np.array(PREFIX_ODDS) * allowed
    random = rng.choice(PREFIXES, batch - count, p=odds / odds.sum())
    return np.concatenate([np.full(count, codebooks), random]).astype(np.int32)


def state_of(way: str, books_QKZ: jax.Array, share_QK: jax.Array | None = None) -> dict:
    """The state that starts from `books`: running means agree with them; without shares all codes are equally used."""
    if share_QK is None:
        share_QK = jnp.full(books_QKZ.shape[:2], 1 / books_QKZ.shape[1])
    state = {"books": books_QKZ, "share": share_QK}
    return state | ({"sum": books_QKZ * share_QK[..., None]} if way == "means" else {})


def quantized(latents_BTZ, books_QKZ, prefix_B) -> tuple[jax.Array, dict, tuple]:
    """Straight-through quantisation of each row with its own number of codebooks, the losses, and what `follow` needs.

    The losses are those of VQ-VAE (van den Oord et al. 2017, arXiv:1711.00937, equation 3): `commit` pulls latents to
    codes, `books` pulls codes to their vectors. Both are relative, so that shrinking the latents does not pay.
    """
    used_QB = jnp.arange(len(books_QKZ))[:, None] < prefix_B
    fixed = jax.lax.stop_gradient
    codes_BTQ, rows_QBTZ, given_QBTZ = quantize(fixed(latents_BTZ), fixed(books_QKZ))
    codes_QBT = jnp.moveaxis(codes_BTQ, -1, 0)
    value_BTZ = (rows_QBTZ * used_QB[:, :, None, None]).sum(0)
    size = fixed(latents_BTZ.var(axis=(0, 1)).mean())
    chosen_QBTZ = books_QKZ[jnp.arange(len(books_QKZ))[:, None, None], codes_QBT]
    miss_QB = ((chosen_QBTZ - fixed(given_QBTZ)) ** 2).mean((2, 3)) * used_QB
    losses = {"commit": ((latents_BTZ - value_BTZ) ** 2).mean() / size, "books": miss_QB.sum() / used_QB.sum() / size}
    return latents_BTZ + fixed(value_BTZ - latents_BTZ), losses, (codes_QBT, given_QBTZ, used_QB)


def follow(state: dict, found: tuple, decay, key) -> dict:
    """Counts the uses of every code, moves the codes to the running means of their vectors if that is the way
    (arXiv:1711.00937, appendix A.1), and replaces a dead code by a random vector of the batch."""
    codes_QBT, given_QBTZ, used_QB = found
    books, share = state["books"], state["share"]
    q, k, z = books.shape
    weight = jnp.broadcast_to(used_QB[:, :, None], codes_QBT.shape).reshape(q, -1).astype(jnp.float32)
    weight = weight / jnp.maximum(weight.sum(1, keepdims=True), 1)
    codes, vectors = codes_QBT.reshape(q, -1), given_QBTZ.reshape(q, -1, z)
    level = jnp.arange(q)[:, None]
    share = decay * share + (1 - decay) * jnp.zeros((q, k)).at[level, codes].add(weight)
    if "sum" in state:
        now = jnp.zeros((q, k, z)).at[level, codes].add(weight[..., None] * vectors)
        total = decay * state["sum"] + (1 - decay) * now
        books = total / jnp.maximum(share, 1e-9)[..., None]
    dead = share < DEAD / k
    picks = vectors[level, jax.random.randint(key, (q, k), 0, vectors.shape[1])]
    books = jnp.where(dead[..., None], picks, books)
    share = jnp.where(dead, 0.5 / k, share)
    means = {"sum": jnp.where(dead[..., None], books * share[..., None], total)} if "sum" in state else {}
    return {"books": books, "share": share, **means}


def kmeans(way: str, latents_NZ: np.ndarray, codebooks: int, size: int, seed: int) -> dict:
    """Codebooks by k-means on real latents, level by level on what the earlier levels leave."""
    residual, rng, books, shares = latents_NZ, np.random.default_rng(seed), [], []

    @jax.jit
    def lloyd(rows, book):
        code = ((book**2).sum(-1) - 2 * rows @ book.T).argmin(-1)
        count = jnp.zeros(len(book)).at[code].add(1.0)
        mean = jnp.zeros_like(book).at[code].add(rows) / jnp.maximum(count, 1)[:, None]
        return jnp.where(count[:, None] > 0, mean, book), code, count

    for _ in tqdm(range(codebooks), desc="k-means", unit="codebook"):
        book = jnp.asarray(residual[rng.choice(len(residual), size, replace=False)])
        for _ in range(8):
            book, code, count = lloyd(residual, book)
        book, code, count = np.asarray(book), np.asarray(code), np.asarray(count)
        residual = residual - book[code]
        books.append(book)
        shares.append(np.maximum(count, 0.5) / len(residual))
    return state_of(way, jnp.asarray(np.stack(books)), jnp.asarray(np.stack(shares), jnp.float32))
