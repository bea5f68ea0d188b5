"""`audiolm compare`: strategies trained and measured under equal conditions, in resumable stages, and the report.

compare.py   the stages: corpus, tokens, references, then train, likelihood, speech and speed of every cell
config.py    section `compare` of the configuration
cells.py     the runs: every strategy of every size from every seed
budget.py    rows and steps that make parameters and training FLOPs, or frames of audio, equal
stages.py    a result per stage on disk; what is done is not done again
results.py   results.json: means over seeds, intervals, differences, notes
report/      its keys (schema.py) and the page
"""
