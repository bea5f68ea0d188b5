"""Residual vector quantisation: each codebook takes the row nearest to the residual of the earlier ones."""

import jax
import jax.numpy as jnp


def quantize(latents_BTZ: jax.Array, books_QKZ: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Codes `[B, T, Q]` int32, the chosen rows `[Q, B, T, Z]`, and the input of each codebook `[Q, B, T, Z]`."""

    def level(residual, book_KZ):
        distance = (book_KZ**2).sum(-1) - 2 * residual @ book_KZ.T
        code = distance.argmin(-1).astype(jnp.int32)
        row = book_KZ[code]
        return residual - row, (code, row, residual)

    _, (codes_QBT, rows_QBTZ, inputs_QBTZ) = jax.lax.scan(level, latents_BTZ, books_QKZ)
    return jnp.moveaxis(codes_QBT, 0, -1), rows_QBTZ, inputs_QBTZ


def dequantize(codes_BTQ: jax.Array, books_QKZ: jax.Array) -> jax.Array:
    """Sum of the chosen rows `[B, T, Z]`; a code of -1 stands for a codebook left out and adds nothing."""
    rows = books_QKZ[jnp.arange(books_QKZ.shape[0]), jnp.maximum(codes_BTQ, 0)]
    return jnp.where(codes_BTQ[..., None] < 0, 0, rows).sum(-2)
