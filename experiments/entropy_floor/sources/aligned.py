"""(f) Read from text: two or three of the letters x, y, z, no two equal ones in a row, each held for 1 to 3 frames.

duration of a letter: 1, 2, 3 frames with .3, .5, .2    c0 = the letter    c1 = c0 with .8, else one more
c2 = c1 + frames since the letter began    (modulo 3)

c0 shows where in the text the frame is, so the alignment is known, and so is the probability of every end: the grid
ends where the last letter does. An order that knows the length first (`masked`) pays for it there, and less for the
codes.
"""

import itertools

from experiments.entropy_floor.sources import CODEBOOK_SIZE, END, either

LETTERS = "xyz"
DURATIONS = {1: 0.3, 2: 0.5, 3: 0.2}


def texts():
    words = [
        "".join(letters)
        for count in (2, 3)
        for letters in itertools.product(LETTERS, repeat=count)
        if all(a != b for a, b in itertools.pairwise(letters))
    ]
    return dict.fromkeys(words, 1 / len(words))


def start(text):
    return text, 0


def step(state):
    """A state is (letters still to come, the present one first; frames it has had)."""
    letters, held = state
    if held == 0:
        return _frames(1.0, letters, 0)
    longer = sum(p for duration, p in DURATIONS.items() if duration > held)
    moves = DURATIONS[held] / (DURATIONS[held] + longer)
    following = _frames(moves, letters[1:], 0) if letters[1:] else [(moves, END, None)]
    return following + (_frames(1 - moves, letters, held) if longer else [])


def _frames(probability, letters, held):
    c0 = LETTERS.index(letters[0])
    return [
        (probability * p1, (c0, c1, (c1 + held) % CODEBOOK_SIZE), (letters, held + 1)) for p1, c1 in either(c0, 0.8)
    ]
