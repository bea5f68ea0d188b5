"""Text or audio -> states: t5, chroma, recogniser."""
