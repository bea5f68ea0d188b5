"""(c) Three Markov chains side by side: every codebook follows its own past and nothing else.

first frame: uniform    later: c_q = its last value with .85, .75, .8 (q = 0, 1, 2), else the next one

Orders that predict a codebook's frames one after the other reach the floor. `hierarchical` predicts the frames of
codebooks 1 and 2 in one pass each, without seeing their past, and pays log2(3) - H(stay) for each frame after the
first; so does `masked` wherever one pass predicts neighbours.
"""

import itertools

from experiments.entropy_floor.sources import CODEBOOK_SIZE, CODEBOOKS, either, unless_ended

STAY = (0.85, 0.75, 0.8)


def texts():
    return {"": 1.0}


def start(text):
    return 0, None


def step(state):
    frames, last = state
    choices = [
        [(1 / CODEBOOK_SIZE, code) for code in range(CODEBOOK_SIZE)] if last is None else either(last[q], STAY[q])
        for q in range(CODEBOOKS)
    ]
    following = (
        (p0 * p1 * p2, (c0, c1, c2), (frames + 1, (c0, c1, c2)))
        for (p0, c0), (p1, c1), (p2, c2) in itertools.product(*choices)
    )
    return unless_ended(frames, following)
