"""`audiolm plan`: the programs of a run compiled ahead of time for other chips, and their memory, traffic and time.

plan.py         the plan of one configuration on one slice
chips.py        chips, slices and their descriptions for the compiler (libtpu.py, gpus.py)
programs.py     the train step, prefill, decode chunk and masked passes of a configuration
work.py         FLOPs and matrix traffic of a traced program, per chip
collectives.py  the collectives of a compiled program, from its HLO
estimate.py     memory, collectives and roofline time of a compiled program
fitting.py      the first change of a configuration that fits
table.py        a plan as text
"""
