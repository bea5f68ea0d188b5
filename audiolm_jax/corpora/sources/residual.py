"""(d) Like a residual quantizer's: a code follows the coarser code of its frame and its own value one frame before.

c0 = its last value with .7, else the next one        c_q = last c_q + c_{q-1} with .85, else one more     (modulo 3)

The first frame follows a frame of zeros. `parallel` does not see the coarser code of the frame, `hierarchical` and
`masked` do not see the last value of codebooks that they predict in one pass: all of these lose.
"""

from audiolm_jax.corpora.sources import either, unless_ended


def texts():
    return {"": 1.0}


def start(text):
    return 0, (0, 0, 0)


def step(state):
    frames, last = state
    following = (
        (p0 * p1 * p2, (c0, c1, c2), (frames + 1, (c0, c1, c2)))
        for p0, c0 in either(last[0], 0.7)
        for p1, c1 in either(last[1] + c0, 0.85)
        for p2, c2 in either(last[2] + c1, 0.85)
    )
    return unless_ended(frames, following)
