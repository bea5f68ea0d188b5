"""Native audio-token language models in JAX: one transformer, every order on the codec grid."""
