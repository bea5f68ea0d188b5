"""(b) Frames that have nothing to do with each other, codebooks inside one that nearly determine each other.

c0 ~ (.6, 0, .4)    c1 = c0 with .9, else c0 + 1    c2 = c1 with .9, else c1 + 1

`parallel` predicts the codes of a frame together and loses their total correlation, sum_q H(c_q) - H(frame), in every
frame. Every other order of the dict sees the coarser codes of the frame and loses nothing.
"""

from experiments.entropy_floor.sources import either, unless_ended

COARSE = {0: 0.6, 2: 0.4}


def texts():
    return {"": 1.0}


def start(text):
    return 0


def step(state):
    following = (
        (p0 * p1 * p2, (c0, c1, c2), state + 1)
        for c0, p0 in COARSE.items()
        for p1, c1 in either(c0, 0.9)
        for p2, c2 in either(c1, 0.9)
    )
    return unless_ended(state, following)
