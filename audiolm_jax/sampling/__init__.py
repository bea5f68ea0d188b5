"""Sampling codes from a trained model: rules on logits, one causal loop, one masked loop.

The state of both loops is the grid itself, `codes_BTQ` with -1 in the cells that are not made yet. What is already
there, a prompt of any length, is kept; the order of the strategy says which cells come next.

    rules.py    temperature, top-k, top-p, guidance: pure functions of logits
    plan.py     requests -> fixed-shape arrays: prompts, grids, limits, keys, rules
    causal.py   every strategy with a causal pass: flat, parallel, delay, coarse_first, level 0 of hierarchical
    masked.py   bidirectional passes: masked, the finer levels of hierarchical; lengths
"""

import dataclasses

from audiolm_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How codes are drawn. `temperature`, `top_k`, `top_p` hold one number, or one per codebook."""

    temperature: tuple[float, ...] = (1.0,)  # 0 takes the most likely code
    top_k: tuple[int, ...] = (0,)  # keep the k most likely codes; 0 keeps all
    top_p: tuple[float, ...] = (1.0,)  # keep the most likely codes that hold this much probability; 1 keeps all
    guidance: float = 1.0  # u + g (c - u), c with and u without the text; 1 is off, and costs nothing
    max_frames: int = 0  # the longest segment that is made, prompt included; 0: as long as the model was trained for
    seed: int = 0  # row b of a request draws from seed + b
    chunk: int = 32  # steps in one executable: what a stream waits for, and how late an end of all rows is noticed
    one_pass_temperature: float = 0.0  # hierarchical, masked: of levels made in a single bidirectional pass
    confidence_noise: float = 1.0  # masked: Gumbel noise on log-probabilities when ranking, sinking to 0 in a level
    anneal: float = 0.0  # masked: share of the temperature that is gone in the last pass of a level
    length_temperature: float = 0.0  # masked: of the number of frames; 0 takes the most likely

    def __post_init__(self) -> None:
        for name in ("temperature", "top_k", "top_p"):
            values = getattr(self, name)
            if isinstance(values, (int, float)):
                values = (values,)
            object.__setattr__(self, name, tuple(values))
            if not self.__dict__[name]:
                raise InputError(f"sampling.{name} is empty; it must hold one number, or one per codebook")
        for name, accepted, fits in (
            ("temperature", "0 or more", lambda x: x >= 0),
            ("top_k", "0 or more", lambda x: x >= 0),
            ("top_p", "above 0 and at most 1", lambda x: 0 < x <= 1),
            ("guidance", "0 or more", lambda x: x >= 0),
            ("max_frames", "0 or more", lambda x: x >= 0),
            ("chunk", "1 or more", lambda x: x >= 1),
            ("one_pass_temperature", "0 or more", lambda x: x >= 0),
            ("confidence_noise", "0 or more", lambda x: x >= 0),
            ("anneal", "in 0..1", lambda x: 0 <= x <= 1),
            ("length_temperature", "0 or more", lambda x: x >= 0),
        ):
            values = getattr(self, name)
            for value in values if isinstance(values, tuple) else (values,):
                if not fits(value):
                    raise InputError(f"sampling.{name} is {value}; it must be {accepted}")

    def per_codebook(self, name: str, codebooks: int) -> tuple:
        """Option `name` for each of Q codebooks. Raises InputError if it holds neither 1 nor Q numbers."""
        values = getattr(self, name)
        if len(values) not in (1, codebooks):
            raise InputError(f"sampling.{name} is {values}; it must hold 1 number or {codebooks}, one per codebook")
        return values * codebooks if len(values) == 1 else values
