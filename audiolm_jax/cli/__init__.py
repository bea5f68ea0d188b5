"""The command line: main.py, one file per command, and what several commands share (arguments.py).

A new command is a file with HELP, `add(parser)` and `run(options)`, and a line of `main.COMMANDS`.
"""
