"""(a) Codes that have nothing to do with each other. Every order reaches the floor, which is a sum of three entropies.

c0 ~ (.7, .3, 0)    c1 ~ (.75, 0, .25)    c2 ~ (0, .5, .5)
"""

from experiments.entropy_floor.sources import unless_ended

CODES = ({0: 0.7, 1: 0.3}, {0: 0.75, 2: 0.25}, {1: 0.5, 2: 0.5})


def texts():
    return {"": 1.0}


def start(text):
    return 0


def step(state):
    following = (
        (p0 * p1 * p2, (c0, c1, c2), state + 1)
        for c0, p0 in CODES[0].items()
        for c1, p1 in CODES[1].items()
        for c2, p2 in CODES[2].items()
    )
    return unless_ended(state, following)
