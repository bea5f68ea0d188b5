"""MusicGen of odd small sizes with random weights, as a folder in the Hugging Face layout that `transformers` saved."""

from pathlib import Path

WORDS = "rock slow jazz with a loud piano and drums fast quiet".split()


def tokenizer(path: Path) -> None:
    """A tokenizer.json of one token per known word, then the end (id 1), like T5's."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = {word: n for n, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    made.save(str(path))
