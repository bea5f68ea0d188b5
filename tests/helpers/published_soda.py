"""A SODA of odd small sizes with random weights, written as a folder in the published layout, with a small Mimi."""

import dataclasses
import json
from pathlib import Path

import numpy as np

from audiolm_jax import files
from audiolm_jax.families import soda
from audiolm_jax.serialization.vocab import TEXT_APART
from tests.helpers import published_codecs

CODEBOOKS, CODES, FRAMES = 3, 32, 24
WORDS = "one two three the theme of there seven eleven".split()
SIZES = {"hidden_size": 24, "intermediate_size": 22, "num_hidden_layers": 2, "num_attention_heads": 6}
SIZES |= {"num_key_value_heads": 2, "head_dim": 10, "rms_norm_eps": 1e-5, "max_position_embeddings": 3 * FRAMES}


def write_tokenizer(path: Path, marks=(*soda.AROUND_TEXT, "<|audio_start|>", "<|audio_end|>")) -> int:
    """Byte-level pieces, BOS and EOS and so many reserved ones that text is apart, the marks, a character for every
    code. Returns the number of ids."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=266, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator(WORDS * 3, trainer)
    reserved = [f"<|reserved_special_token_{n}|>" for n in range(TEXT_APART + 6)]
    made.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>", *reserved, *marks])
    made.add_tokens([AddedToken(chr(0xE000 + n), normalized=False) for n in range(CODEBOOKS * CODES)])
    bos = made.token_to_id("<|begin_of_text|>")
    made.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", bos)]
    )
    made.save(str(path))
    return made.get_vocab_size()


def write(folder: Path, tied: bool = False, **changes) -> None:
    """A checkpoint. changes: of its config.json."""
    folder.mkdir(parents=True)
    count = write_tokenizer(folder / "tokenizer.json")
    small = published_codecs.CONFIGS["mimi"]
    published_codecs.write(folder / "codec", "mimi", dataclasses.replace(small, num_quantizers=CODEBOOKS + 1))
    fields = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "vocab_size": count, **SIZES}
    fields |= {"hidden_act": "silu", "attention_bias": False, "rope_theta": 300.0, "tie_word_embeddings": tied}
    fields |= changes
    (folder / "config.json").write_text(json.dumps(fields))
    files.write_safetensors(folder / "model.safetensors", tensors(folder, fields), {"format": "pt"})


def tensors(folder: Path, fields: dict, seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights under the names of the family's table."""
    text = soda.pieces_of(folder)
    spec = soda.described(fields, CODES, text)
    rng, found = np.random.default_rng(seed), {}
    for row in soda.table(spec.model, spec.vocab, text):
        for n in range(spec.model.layers if row.stacked else 1):
            for name, shape in zip(row.names, row.shapes, strict=True):
                scale = 0.3 if len(shape) == 1 else 1.5 * shape[-1] ** -0.5
                found[name.format(n)] = (rng.normal(0, scale, shape) + (len(shape) == 1)).astype(np.float32)
    return found


def reopened(folder: Path):
    """The model of `transformers` in a folder; nothing may be missing in it or too much."""
    import transformers

    model, report = transformers.Qwen3ForCausalLM.from_pretrained(
        folder, output_loading_info=True, attn_implementation="sdpa"
    )
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    return model.eval()
