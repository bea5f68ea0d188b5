"""(e) The finest code of a frame decides the coarsest one of the next frame.

c0 = the last c2 with .9, else one more    c1 = c0 with .7, else one more    c2 = c1 or c1 + 1, evenly     (modulo 3)

`delay` predicts c0 of a frame before c2 of the one before it, and loses; so does every order that has not seen c2 by
then and is not told about it later. `flat` loses nothing. `hierarchical` loses nothing either: it predicts c0 without
c2, but then c2 with the c0 that followed.
"""

from experiments.entropy_floor.sources import either, unless_ended


def texts():
    return {"": 1.0}


def start(text):
    return 0, 0


def step(state):
    frames, finest = state
    following = (
        (p0 * p1 * p2, (c0, c1, c2), (frames + 1, c2))
        for p0, c0 in either(finest, 0.9)
        for p1, c1 in either(c0, 0.7)
        for p2, c2 in either(c1, 0.5)
    )
    return unless_ended(frames, following)
