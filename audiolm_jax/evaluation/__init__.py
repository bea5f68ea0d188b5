"""Measurements of a trained run: likelihood in bits per second of audio, intelligibility, speed.

evaluate.py         all measurements of one run (`audiolm evaluate`), and the stages of a comparison
likelihood.py       negative log-likelihood of held-out codes, exact or an any-order bound
baselines.py        bits of the codes without a network: uniform and unigram
intelligibility.py  character error rate of a recogniser, and a second opinion
speed.py            real-time factor and first audio, measured and predicted
intervals.py        95 % intervals over utterances and seeds, and of paired differences
config.py           section `evaluation` of the configuration
"""
