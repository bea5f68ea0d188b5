"""A tokenizer.json from the older files of a byte-level BPE, as Qwen publishes them: vocab.json, merges.txt, and the
added tokens of tokenizer_config.json."""

from pathlib import Path

from audiolm_jax import files
from audiolm_jax.errors import InputError

NAMES = ("vocab.json", "merges.txt", "tokenizer_config.json")
# How Qwen 2 and later cut a text before they merge bytes (tokenization_qwen2.py of transformers).
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def json_of(folder: Path, what: str) -> str:
    """The content of the tokenizer.json that the files of a folder make. Raises InputError if they cannot be read."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    missing = [name for name in NAMES if not (folder / name).is_file()]
    if missing:
        raise InputError(f"{what}: {folder} lacks {', '.join(missing)}, of which its tokenizer is made")
    with files.reading(folder, "a tokenizer of vocab.json and merges.txt", what):
        vocab, merges = models.BPE.read_file(*(str(folder / name) for name in NAMES[:2]))
        tokenizer = Tokenizer(models.BPE(vocab, merges))
        tokenizer.normalizer = normalizers.NFC()
        cut = pre_tokenizers.Split(Regex(QWEN), behavior="isolated")
        bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, bytes_of])
        tokenizer.decoder = decoders.ByteLevel()
        added = files.read_json(folder / NAMES[2], what).get("added_tokens_decoder") or {}
        for number, token in sorted(added.items(), key=lambda item: int(item[0])):
            flags = {name: bool(token.get(name)) for name in ("lstrip", "rstrip", "single_word", "normalized")}
            tokenizer.add_tokens([AddedToken(token["content"], special=bool(token.get("special")), **flags)])
            if tokenizer.token_to_id(token["content"]) != int(number):
                raise ValueError(f"{token['content']!r} would not have the id {number}")
    return tokenizer.to_str()
