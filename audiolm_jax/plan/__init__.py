"""`audiolm plan`: the programs of a run, compiled for chips that are not here, and what can be read off them.

plan.py         all of it for one configuration and one slice
chips.py        what a chip has and which slices there are; the description that the compiler takes (libtpu.py, gpus.py)
programs.py     the train step, prefill, decode chunk and masked passes of a configuration, as the run builds them
work.py         multiplications and matrix traffic of a program, per chip, counted in what jax traced
collectives.py  what a compiled program sends between its chips, read from its HLO
estimate.py     memory, collectives and a roofline time of a compiled program; what to change if it does not fit
table.py        a plan as text
"""
