"""(d) Like a residual quantizer's: a code follows the coarser code of its frame or its own value one frame before.

c0 = its last value with .7, else the next one (modulo 3)        c_q = c_{q-1} with .55, else last c_q  (q = 1, 2)

The first frame follows a frame of zeros. `parallel` does not see the coarser code of the frame, `hierarchical` and
`masked` do not see the last value of codebooks that they predict in one pass: all of these lose. What the past says
about a code fades from frame to frame: a rule that adds codes up modulo 3 instead would make a network that does not
see a codebook's past count, which tests the network and not the order.
"""

from experiments.entropy_floor.sources import either, unless_ended


def texts():
    return {"": 1.0}


def start(text):
    return 0, (0, 0, 0)


def step(state):
    frames, last = state
    following = (
        (p0 * p1 * p2, (c0, c1, c2), (frames + 1, (c0, c1, c2)))
        for p0, c0 in either(last[0], 0.7)
        for p1, c1 in follow(c0, last[1])
        for p2, c2 in follow(c1, last[2])
    )
    return unless_ended(frames, following)


def follow(coarser: int, last: int) -> list[tuple[float, int]]:
    return [(1.0, last)] if coarser == last else [(0.55, coarser), (0.45, last)]
