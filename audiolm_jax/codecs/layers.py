"""Layers of published codecs: convolutions over time that stream, an LSTM, and a block of attention over a window.

Arrays are `[B, N, C]`, channels last. A layer is called with

    n_B    valid positions of each row in the array: <= 0 if the row ended earlier, >= N if it continues
    tape   the streaming state of a causal network: every layer takes its own state from it and leaves the next one

and returns (its output, n_B of the output). Padding starts at the end of every row, so a row of a batch equals the row
alone, as in the reference (SEANet in EnCodec, arXiv:2210.13438, appendix A; as in the Hugging Face implementation):
`ceil(n / stride)` outputs for n inputs, the last one completed on the right with the padding of the layer.
"""

from collections.abc import Iterator, Sequence
from fractions import Fraction

import jax
import jax.numpy as jnp
from flax import nnx

from audiolm_jax.codecs.streaming import Tape
from audiolm_jax.hub.layers import MLP, Attention, Conv, Norm, parameter, rope, rope_table
from audiolm_jax.model import versions


class PaddedConv(nnx.Module):
    """A convolution with padding, causal or centred, and EnCodec's normalisation over time if `norm`."""

    def __init__(self, conv: Conv, *, causal: bool = True, mode: str = "constant", norm: bool = False):
        """mode: what the padding holds, constant (zeros), reflect or replicate."""
        self.conv = conv
        self.norm = TimeNorm(conv.weight.shape[-1]) if norm else None
        self.causal, self.mode = causal, mode

    @property
    def padding(self) -> tuple[int, int]:
        """Positions added on the left and, beyond what completes the last output, on the right."""
        total = self.conv.reach - self.conv.stride
        right = 0 if self.causal else total // 2
        return total - right, right

    def __call__(self, x_BNC: jax.Array, n_B: jax.Array, tape: Tape) -> tuple[jax.Array, jax.Array]:
        (left, right), stride = self.padding, self.conv.stride
        context = x_BNC
        if left:
            past = before(x_BNC, n_B, left, self.mode)
            past = tape.take(past) if self.causal else past
            context = jnp.concatenate([past, x_BNC], axis=1)
            if self.causal:
                tape.leave(context[:, context.shape[1] - left :])
        if right + stride > 1:
            context = completed(context, n_B, left, right, stride, self.mode, tape.first)
            context = context[:, : left + x_BNC.shape[1] + right]
        y, n_B = self.conv(context), -(-n_B // stride)
        return (self.norm(y, n_B) if self.norm else y), n_B


def before(x_BNC: jax.Array, n_B: jax.Array, left: int, mode: str) -> jax.Array:
    """Padding of `left` positions before a signal."""
    batch, count, channels = x_BNC.shape
    if mode == "replicate":
        return jnp.broadcast_to(x_BNC[:, :1], (batch, left, channels))
    if mode == "constant" or not left:
        return jnp.zeros((batch, left, channels), x_BNC.dtype)
    # A signal shorter than its padding is extended with zeros, which are reflected too (as in the reference).
    head = jnp.pad(x_BNC[:, : left + 1], ((0, 0), (0, max(0, left + 1 - count)), (0, 0)))
    exists = jnp.arange(left + 1) < n_B[:, None]
    return jnp.where(exists[..., None], head, 0)[:, :0:-1]


def completed(context, n_B, left: int, right: int, stride: int, mode: str, first: jax.Array | bool) -> jax.Array:
    """The context `[B, left + N, C]`, longer by right + stride - 1, with padding after the end of every row.

    first: the piece is the beginning of the signal, which may then be shorter than its padding.
    """
    batch, length, channels = context.shape
    after = right + stride - 1
    count = length - left
    end_B = jnp.clip(n_B, 0, count)
    longer = jnp.pad(context, ((0, 0), (0, after), (0, 0)))
    at_BA = end_B[:, None] + jnp.arange(after)  # positions to fill
    if mode == "constant":
        fill = jnp.zeros((batch, after, channels), context.dtype)
    elif mode == "replicate":
        fill = jnp.take_along_axis(longer, (left + jnp.maximum(end_B, 1) - 1)[:, None, None], axis=1)
        fill = jnp.broadcast_to(fill, (batch, after, channels))
    else:
        extra_B = -end_B % stride
        short_B = jnp.where(first, jnp.maximum(0, jnp.maximum(left, right + extra_B) - end_B + 1), 0)
        mirror_B = end_B + short_B - 1  # zeros follow a signal shorter than its padding; the last one is the mirror
        source_BA = 2 * mirror_B[:, None] - at_BA
        exists_BA = (source_BA < end_B[:, None]) & (source_BA >= -left)
        index_BA = jnp.clip(left + source_BA, 0, length - 1)
        fill = jnp.where(exists_BA[..., None], jnp.take_along_axis(longer, index_BA[..., None], axis=1), 0)
    return jax.vmap(lambda row, cells, start: jax.lax.dynamic_update_slice(row, cells, (start, 0)))(
        longer, fill, left + end_B
    )


class TransposedConv(nnx.Module):
    """Transposed convolution with a kernel of 2 * stride: each input gives two blocks of outputs, which overlap-add.

    depthwise: every channel by itself (as many groups as channels), without a bias.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, depthwise: bool = False):
        self.weight = parameter((inputs, 2 * stride, 1 if depthwise else outputs), 0, 2, 1)
        self.bias = None if depthwise else parameter((outputs,), 0)
        self.stride, self.depthwise = stride, depthwise

    def blocks(self, x_BNC: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The terms that every input adds to its own block and to the next one, `[B, N, stride, outputs]` each."""
        if self.depthwise:
            y = x_BNC[:, :, None] * self.weight[..., 0].T
        else:
            inputs, kernel, outputs = self.weight.shape
            y = (x_BNC @ self.weight[...].reshape(inputs, kernel * outputs)).reshape(*x_BNC.shape[:2], kernel, outputs)
        return y[:, :, : self.stride], y[:, :, self.stride :]


class PaddedTransposedConv(nnx.Module):
    """A transposed convolution trimmed to `stride` outputs per input: on the right if causal, else on both sides.

    odd_short: an odd stride gives one output less at the end of a row (DAC, which trims both sides equally).
    """

    def __init__(self, conv: TransposedConv, *, causal=True, norm=0, odd_short=False):
        """norm: channels of the normalisation over time, 0: none."""
        self.conv = conv
        self.norm = TimeNorm(norm) if norm else None
        self.causal, self.odd_short = causal, odd_short

    def __call__(self, x_BNC: jax.Array, n_B: jax.Array, tape: Tape) -> tuple[jax.Array, jax.Array]:
        stride = self.conv.stride
        if self.causal:
            past = tape.take(jnp.zeros((len(x_BNC), 1, x_BNC.shape[2]), x_BNC.dtype))
            tape.leave(x_BNC[:, -1:])
            own, over = self.conv.blocks(jnp.concatenate([past, x_BNC], axis=1))
            y = own[:, 1:] + over[:, :-1]
        else:
            exists = jnp.arange(x_BNC.shape[1]) < n_B[:, None]
            own, over = self.conv.blocks(jnp.where(exists[..., None], x_BNC, 0))
            y = jnp.pad(own, ((0, 0), (0, 1), (0, 0), (0, 0))) + jnp.pad(over, ((0, 0), (1, 0), (0, 0), (0, 0)))
        y = y.reshape(len(y), -1, y.shape[-1])
        y = y if self.conv.bias is None else y + self.conv.bias[...]
        if self.norm:  # over all outputs, before trimming
            y = self.norm(y, (n_B + 1) * stride)
        if not self.causal:
            y = y[:, stride - stride // 2 : y.shape[1] - stride // 2]
        return y, n_B * stride - (stride % 2 if self.odd_short else 0)


class TimeNorm(nnx.Module):
    """Group normalisation of one group: over all channels and the n positions of a row (`time_group_norm`)."""

    def __init__(self, channels: int):
        self.weight, self.bias = parameter((channels,), 0), parameter((channels,), 0)

    def __call__(self, y_BNC: jax.Array, n_B: jax.Array) -> jax.Array:
        exists = (jnp.arange(y_BNC.shape[1]) < n_B[:, None])[..., None]
        cells_B = jnp.maximum(n_B, 1)[:, None, None] * y_BNC.shape[2]
        mean = jnp.where(exists, y_BNC, 0).sum((1, 2), keepdims=True) / cells_B
        variance = jnp.where(exists, (y_BNC - mean) ** 2, 0).sum((1, 2), keepdims=True) / cells_B
        return (y_BNC - mean) * jax.lax.rsqrt(variance + 1e-5) * self.weight[...] + self.bias[...]


class LSTM(nnx.Module):
    """Layers of an LSTM with a skip around all of them; gates in torch's order (input, forget, cell, output)."""

    def __init__(self, channels: int, layers: int):
        self.layers = layers
        self.lstm = versions.Dict()
        for n in range(layers):
            self.lstm[f"weight_ih_l{n}"] = parameter((channels, 4 * channels), 1, 0)
            self.lstm[f"weight_hh_l{n}"] = parameter((channels, 4 * channels), 1, 0)
            self.lstm[f"bias_ih_l{n}"] = parameter((4 * channels,), 0)
            self.lstm[f"bias_hh_l{n}"] = parameter((4 * channels,), 0)

    def __call__(self, x_BNC: jax.Array, n_B: jax.Array, tape: Tape) -> tuple[jax.Array, jax.Array]:
        y_NBC = jnp.moveaxis(x_BNC, 1, 0)
        for n in range(self.layers):
            weights = [self.lstm[f"{name}_l{n}"][...] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
            zeros = jnp.zeros(y_NBC.shape[1:], y_NBC.dtype)
            state, y_NBC = self.run(y_NBC, tape.take((zeros, zeros)), *weights)
            tape.leave(state)
        return x_BNC + jnp.moveaxis(y_NBC, 0, 1), n_B

    @staticmethod
    def run(x_NBC, state, weight_ih, weight_hh, bias_ih, bias_hh):
        def step(state, input_BG):
            h_BC, c_BC = state
            i, f, g, o = jnp.split(input_BG + h_BC @ weight_hh, 4, axis=-1)
            c_BC = jax.nn.sigmoid(f) * c_BC + jax.nn.sigmoid(i) * jnp.tanh(g)
            h_BC = jax.nn.sigmoid(o) * jnp.tanh(c_BC)
            return (h_BC, c_BC), h_BC

        return jax.lax.scan(step, state, x_NBC @ weight_ih + (bias_ih + bias_hh))


class Scale(nnx.Module):
    def __init__(self, width: int):
        self.scale = parameter((width,), 0)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x * self.scale[...]


class TransformerLayer(nnx.Module):
    """A pre-norm block whose branches are scaled, channel by channel (arXiv:2103.17239): causal attention over the last
    `window` positions, and an MLP."""

    def __init__(self, attention: Attention, mlp: MLP, norms: Sequence[Norm], window: int, rope_base: float):
        """attention: with groups of query heads. norms: before the attention and before the MLP."""
        self.window, self.rope_base = window, rope_base
        self.input_layernorm, self.post_attention_layernorm = norms
        width = len(norms[0].weight)
        self.self_attn, self.self_attn_layer_scale = attention, Scale(width)
        self.mlp, self.mlp_layer_scale = mlp, Scale(width)

    def __call__(self, x_BND: jax.Array, begin: jax.Array, tape: Tape) -> jax.Array:
        """begin: positions before this chunk."""
        x_BND = x_BND + self.self_attn_layer_scale(self.attend(self.input_layernorm(x_BND), begin, tape))
        return x_BND + self.mlp_layer_scale(self.mlp(self.post_attention_layernorm(x_BND)))

    def attend(self, x_BND: jax.Array, begin: jax.Array, tape: Tape) -> jax.Array:
        """Attention with rotary positions. The state is keys and values `[B, window - 1, H, K]`."""
        (batch, count, _), before = x_BND.shape, self.window - 1
        q, k, v = self.self_attn.project(x_BND)
        place_N = begin + jnp.arange(count)
        cos, sin = (table[:, None] for table in rope_table(place_N, k.shape[-1], self.rope_base))
        q, k = rope(q, cos[:, None], sin[:, None]), rope(k, cos, sin)
        past = tape.take((jnp.zeros((batch, before, *k.shape[2:]), x_BND.dtype),) * 2)
        k, v = (jnp.concatenate([old, new], axis=1) for old, new in zip(past, (k, v), strict=True))
        tape.leave((k[:, count:], v[:, count:]))
        place_M = begin - before + jnp.arange(before + count)
        ago_NM = place_N[:, None] - place_M
        return self.self_attn.read(q, k, v, (ago_NM >= 0) & (ago_NM < self.window) & (place_M >= 0))


def in_order(layers: Sequence[TransformerLayer], x_BND: jax.Array, tape: Tape) -> jax.Array:
    """One block after the other. The state is the number of positions before this chunk, and that of the blocks."""
    begin = tape.take(jnp.int32(0))
    tape.leave(begin + x_BND.shape[1])
    for layer in layers:
        x_BND = layer(x_BND, begin, tape)
    return x_BND


def run(layers: Sequence, x_BNC: jax.Array, n_B: jax.Array, tape: Tape) -> tuple[jax.Array, jax.Array]:
    """One layer after the other."""
    for layer in layers:
        x_BNC, n_B = layer(x_BNC, n_B, tape)
    return x_BNC, n_B


def reach(layers: Sequence) -> tuple[Fraction, Fraction]:
    """(positions before, positions after) that an output of these layers depends on, in positions of the input."""
    left = right = Fraction(0)
    position = Fraction(1)  # size of a position of the current layer, in positions of the input
    for layer in flat(layers):
        if isinstance(layer, PaddedConv):
            before, after = layer.padding
            left += before * position
            right += (after + layer.conv.stride - 1) * position
            position *= layer.conv.stride
        elif isinstance(layer, PaddedTransposedConv):
            left, right, position = left + position, right + position, position / layer.conv.stride
    return left, right


def flat(layers: Sequence) -> Iterator[nnx.Module]:
    """The layers, with the longest path through those that have a `chain` of layers inside."""
    for layer in layers:
        yield from flat(layer.chain) if hasattr(layer, "chain") else [layer]
