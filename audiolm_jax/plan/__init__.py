"""`audiolm plan`: the programs of a run, compiled for chips that are not here, and what can be read off them.

chips.py     what a chip has and which slices there are; the description that the compiler takes
programs.py  the train step, prefill, decode chunk and masked passes of a configuration, as the run builds them
work.py      multiplications and matrix traffic of a program, per chip, counted in what jax traced
estimate.py  memory, collectives and a roofline time of a compiled program; what to change if it does not fit
show.py      the table
"""
