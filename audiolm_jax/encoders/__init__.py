"""Encoders: text or audio -> states `[length, width]`, frozen, in float32. Deleting the folder leaves the core intact.

    t5           text -> states for cross-attention (MusicGen): the encoder of T5 and its tokenizer
    chroma       melody -> pitch classes over time (MusicGen-melody)
    recogniser   speech -> characters by CTC: measures the intelligibility of generated speech; its weights ship with
                 the package

An encoder is built from `hub.layers`, filled from a published file by `hub.weights`, and run on one device. It knows
neither the language model nor a codec; a family decides what its states condition.
"""
