"""Sampling codes from a trained model: rules on logits, one causal loop, one masked loop.

The state of both loops is the grid itself, `codes_BTQ`, with -1 in the cells that are still to be sampled. Cells of a
prompt, of any length, are never resampled; the order of the strategy says which cells come next.

    rules.py        guidance, repetition, temperature, top-k, top-p, min-p: pure functions of logits
    rows.py         options of `generate` -> rows: types, lists, recordings as prompts
    requests.py     requests -> fixed-shape arrays: prompts, grids, limits, keys, rules
    causal.py       every strategy with a causal pass: flat, parallel, delay, coarse_first, level 0 of hierarchical
    masked.py       bidirectional passes: masked, the finer levels of hierarchical; lengths
    windows.py      audio longer than the training segments
    performance.py  weights and compiler options for decoding
    background.py   compiling in a thread
    result.py       what comes back: shown as a player, saved to a file
    generator.py    text, audio, melody -> audio: what a notebook, the command line and the evaluation call
"""

import dataclasses
import reprlib

from audiolm_jax.config import key, validate
from audiolm_jax.errors import InputError

# The codec decodes multiples of this many frames, and the last ones at the end, so that it compiles few shapes.
DECODE_FRAMES = 8


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How codes are drawn. Tuples hold one item, or one per codebook; rules.py says in what order they apply."""

    temperature: tuple[float, ...] = key(
        (1.0,), "Temperature of the softmax; 0 takes the most likely code.", at_least=0, filled=True
    )
    top_k: tuple[int, ...] = key((0,), "Keep the k most likely codes; 0: all.", at_least=0, filled=True)
    top_p: tuple[float, ...] = key(
        (1.0,),
        "Keep the most likely codes that hold this much probability; 1: all.",
        above=0,
        at_most=1,
        filled=True,
    )
    guidance: float = key(
        1.0, "Guidance g: logits are u + g (c - u), c with and u without the text; 1: off, at no cost.", at_least=0
    )
    max_frames: int = key(
        0, "Frames of the longest segment, prompt included; 0: data.max_frames of the training.", at_least=0
    )
    min_frames: int = key(
        0, "Frames after the prompt before the model may end; for lengths that it predicts.", at_least=0
    )
    min_p: tuple[float, ...] = key(
        (0.0,),
        "Keep the codes at least this many times as likely as the most likely one; 0: all.",
        at_least=0,
        at_most=1,
        filled=True,
    )
    suppressed: tuple[tuple[int, ...], ...] = key(
        ((),), "Codes that are never drawn, a tuple of them per codebook; ((5, 7),): those of all.", filled=True
    )
    repetition_penalty: tuple[float, ...] = key(
        (1.0,),
        "Positive logits of codes that the codebook had before are divided by it, negative ones multiplied; 1: off.",
        above=0,
        filled=True,
    )
    repetition_window: tuple[int, ...] = key(
        (0,), "Frames that the repetition penalty looks back over; 0: all.", at_least=0, filled=True
    )
    repetition_prompt: bool = key(
        True,
        "Whether the penalty counts codes of the prompt. Transformers counts those of a prompt of ids, not of "
        "embeddings.",
    )
    ras_window: tuple[int, ...] = key(
        (0,),
        "Repetition-aware sampling: a code whose share in so many frames before, the prompt's included, is above "
        "ras_ratio is drawn again from the plain softmax; 0: off.",
        at_least=0,
        filled=True,
    )
    ras_ratio: tuple[float, ...] = key(
        (0.1,), "Share of a code in ras_window up to which it is kept.", at_least=0, at_most=1, filled=True
    )
    seed: int = key(0, "Row b of a request draws from seed + b.")
    chunk: int = key(
        32,
        "Steps in one executable: a stream waits for them, and the end of all rows is noticed after them.",
        at_least=1,
    )
    one_pass_temperature: float = key(
        0.0,
        "hierarchical, masked: temperature of codebooks sampled in a single bidirectional pass.",
        at_least=0,
    )
    confidence_noise: float = key(
        1.0,
        "masked: Gumbel noise on log-probabilities when cells are ranked, sinking to 0 within a codebook.",
        at_least=0,
    )
    anneal: float = key(
        0.0, "masked: fraction of the temperature that is gone in the last pass of a codebook.", at_least=0, at_most=1
    )
    length_temperature: float = key(
        0.0, "masked: temperature of the number of frames; 0 takes the most likely.", at_least=0
    )

    def __post_init__(self) -> None:
        validate(self, "sampling")

    def per_codebook(self, name: str, codebooks: int) -> tuple:
        """Option `name` for each of Q codebooks. Raises InputError if it holds neither 1 nor Q items."""
        values = getattr(self, name)
        if len(values) not in (1, codebooks):
            item = "tuple of codes" if name == "suppressed" else "number"
            raise InputError(
                f"sampling.{name} is {reprlib.repr(values)}; it must hold 1 {item} or {codebooks}, one per codebook"
            )
        return values * codebooks if len(values) == 1 else values
