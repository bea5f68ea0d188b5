"""Likelihood in bits per second of audio, intelligibility, and speed."""
