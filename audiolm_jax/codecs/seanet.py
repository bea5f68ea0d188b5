"""SEANet, the convolutional encoder and decoder of SoundStream, EnCodec and Mimi (arXiv:2009.02095, 2210.13438).

Layers are numbered as in the reference implementation, activations included, so that the path of a parameter is its
name in a published file.
"""

import dataclasses
import math

import jax
from flax import nnx

from audiolm_jax.codecs import checks
from audiolm_jax.codecs.layers import LSTM, PaddedConv, PaddedTransposedConv, TransposedConv, run
from audiolm_jax.codecs.streaming import Tape
from audiolm_jax.errors import InputError
from audiolm_jax.hub.layers import Conv
from audiolm_jax.model import versions

WIDEST = 2**16  # positions under a dilated kernel


@dataclasses.dataclass(frozen=True)
class SEANetConfig:
    """The part of a published `config.json` that SEANet reads, under its names there."""

    sampling_rate: int = 24000
    audio_channels: int = 1
    hidden_size: int = 128
    num_filters: int = 32
    num_residual_layers: int = 1
    upsampling_ratios: tuple[int, ...] = (8, 5, 4, 2)
    kernel_size: int = 7
    last_kernel_size: int = 7
    residual_kernel_size: int = 3
    dilation_growth_rate: int = 2
    use_causal_conv: bool = True
    pad_mode: str = "reflect"
    compress: int = 2
    trim_right_ratio: float = 1.0
    use_conv_shortcut: bool = True
    num_lstm_layers: int = 0
    norm_type: str = "weight_norm"

    def __post_init__(self) -> None:
        object.__setattr__(self, "upsampling_ratios", tuple(self.upsampling_ratios))
        checks.supported(
            self,
            pad_mode=("constant", "reflect"),
            norm_type=("weight_norm", "time_group_norm"),
            trim_right_ratio=(1.0,),
            audio_channels=(1, 2),
        )
        if self.dilation_growth_rate ** max(0, self.num_residual_layers - 1) * self.residual_kernel_size > WIDEST:
            raise InputError(
                f"codec config: dilation_growth_rate={self.dilation_growth_rate} over num_residual_layers="
                f"{self.num_residual_layers} reaches over more than {WIDEST} positions"
            )
        if self.use_causal_conv and self.time_norm:
            raise InputError("codec config: norm_type='time_group_norm' normalises over a signal; it cannot be causal")

    @property
    def stride(self) -> int:
        """Samples per position of the latents."""
        return math.prod(self.upsampling_ratios)

    @property
    def time_norm(self) -> bool:
        """Whether every convolution is followed by a normalisation over time."""
        return self.norm_type == "time_group_norm"

    def conv(self, inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1) -> PaddedConv:
        """A convolution with the padding of this configuration."""
        conv = Conv(inputs, outputs, kernel, stride, dilation)
        return PaddedConv(conv, causal=self.use_causal_conv, mode=self.pad_mode, norm=self.time_norm)

    @property
    def start(self) -> int:
        """Positions of the latents after which a causal network knows the first one.

        Reflection pads the beginning of every layer's input with the positions after it.
        """
        if self.pad_mode != "reflect":
            return 1
        reach = (self.residual_kernel_size - 1) * self.dilation_growth_rate ** (self.num_residual_layers - 1) + 1
        return max(2, self.kernel_size, self.last_kernel_size, -(-reach // self.upsampling_ratios[0]))


class Elu(nnx.Module):
    def __call__(self, x_BNC, n_B, tape):
        return jax.nn.elu(x_BNC), n_B


class ResidualBlock(nnx.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, c: SEANetConfig, width: int, dilation: int):
        hidden = width // c.compress
        first = c.conv(width, hidden, c.residual_kernel_size, dilation=dilation)
        self.block = versions.List([Elu(), first, Elu(), c.conv(hidden, width, 1)])
        self.shortcut = c.conv(width, width, 1) if c.use_conv_shortcut else None

    @property
    def chain(self) -> versions.List:
        return self.block

    def __call__(self, x_BNC, n_B, tape: Tape):
        y, _ = run(self.block, x_BNC, n_B, tape)
        return (self.shortcut(x_BNC, n_B, tape)[0] if self.shortcut else x_BNC) + y, n_B


class Network(nnx.Module):
    """Layers one after another."""

    def __init__(self, layers: list):
        self.layers = versions.List(layers)

    def __call__(self, x_BNC, n_B, tape: Tape):
        return run(self.layers, x_BNC, n_B, tape)


class Encoder(Network):
    """Waveforms `[B, N, channels]` -> latents `[B, ceil(N / stride), hidden_size]`."""

    def __init__(self, c: SEANetConfig):
        width = c.num_filters
        layers = [c.conv(c.audio_channels, width, c.kernel_size)]
        for ratio in reversed(c.upsampling_ratios):
            layers += [ResidualBlock(c, width, c.dilation_growth_rate**n) for n in range(c.num_residual_layers)]
            layers += [Elu(), c.conv(width, 2 * width, 2 * ratio, ratio)]
            width *= 2
        layers += [LSTM(width, c.num_lstm_layers)] if c.num_lstm_layers else []
        layers += [Elu(), c.conv(width, c.hidden_size, c.last_kernel_size)]
        super().__init__(layers)


class Decoder(Network):
    """Latents `[B, N, hidden_size]` -> waveforms `[B, N * stride, channels]`."""

    def __init__(self, c: SEANetConfig):
        width = c.num_filters * 2 ** len(c.upsampling_ratios)
        layers = [c.conv(c.hidden_size, width, c.kernel_size)]
        layers += [LSTM(width, c.num_lstm_layers)] if c.num_lstm_layers else []
        for ratio in c.upsampling_ratios:
            norm = width // 2 if c.time_norm else 0
            up = PaddedTransposedConv(TransposedConv(width, width // 2, ratio), causal=c.use_causal_conv, norm=norm)
            width //= 2
            layers += [Elu(), up]
            layers += [ResidualBlock(c, width, c.dilation_growth_rate**n) for n in range(c.num_residual_layers)]
        layers += [Elu(), c.conv(width, c.audio_channels, c.last_kernel_size)]
        super().__init__(layers)
