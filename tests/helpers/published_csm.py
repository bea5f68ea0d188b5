"""CSM of odd small sizes with random weights, as a folder in the Hugging Face layout that `transformers` saved, and in
the layout of its authors."""

import dataclasses
import json
import warnings
from pathlib import Path

import numpy as np

from audiolm_jax import files
from tests.helpers import published_codecs

BOOKS, CODES, SPARE = 4, 32, 3
BEGIN, END = "<|begin_of_text|>", "<|end_of_text|>"
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789[] ,.?"


def rope(factor: float, original: int) -> dict:
    """Llama 3's scaling, of which so few positions see each of its three ranges."""
    scaling = {"factor": factor, "low_freq_factor": 0.5, "high_freq_factor": 2.0}
    return {"rope_type": "llama3", "rope_theta": 100.0, "original_max_position_embeddings": original, **scaling}


def config(**changes) -> dict:
    """The fields of a config.json."""
    codec = json.loads(json.dumps(dataclasses.asdict(published_codecs.CONFIGS["mimi"])))
    common = {"num_codebooks": BOOKS, "vocab_size": CODES + SPARE}
    depth = {
        **common, "model_type": "csm_depth_decoder_model", "backbone_hidden_size": 20, "hidden_size": 12,
        "intermediate_size": 14, "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 3,
        "head_dim": 4, "max_position_embeddings": BOOKS + 1, "rope_parameters": rope(8.0, 2),
    }  # fmt: skip
    return {
        **common, "model_type": "csm", "text_vocab_size": len(LETTERS) + 6, "hidden_size": 20, "intermediate_size": 28,
        "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 6,
        "max_position_embeddings": 96, "rope_parameters": rope(4.0, 16), "bos_token_id": len(LETTERS),
        "pad_token_id": len(LETTERS) + 2, "audio_token_id": len(LETTERS) + 2, "audio_eos_token_id": len(LETTERS) + 3,
        "depth_decoder_config": depth, "codec_config": {"model_type": "mimi", **codec}, **changes,
    }  # fmt: skip


def tokenizer(path: Path) -> None:
    """A tokenizer.json of one token per letter, with the begin and end of text."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({letter: n for n, letter in enumerate(LETTERS)}, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.add_special_tokens([AddedToken(name, special=True) for name in (BEGIN, END, "<|AUDIO|>", "<|audio_eos|>")])
    made.save(str(path))


def made(folder: Path, seed: int = 0):
    """The model of `transformers` that was saved to `folder`: random weights that make logits differ."""
    import torch
    import transformers

    published_codecs.write(folder / "codec", "mimi")
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = transformers.CsmForConditionalGeneration(transformers.CsmConfig(**config())).eval()
        model.codec_model = transformers.MimiModel.from_pretrained(folder / "codec")
        with torch.no_grad():
            for name, x in model.named_parameters():
                if not name.startswith("codec_model."):
                    wide = 0.5 if x.ndim > 1 and "embed" not in name else 0.4
                    x.copy_((x.ndim == 1) * x + wide * torch.randn_like(x))
            # The likeliest code is always one that the codec has.
            model.lm_head.weight[CODES:] *= 0.01
            model.depth_decoder.codebooks_head.weight[..., CODES:] *= 0.01
        model.save_pretrained(folder)
    tokenizer(folder / "tokenizer.json")
    return reopened(folder)


def reopened(folder: Path):
    """The model of `transformers` in a folder; nothing may be missing in it or too much."""
    import transformers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, report = transformers.CsmForConditionalGeneration.from_pretrained(
            folder, output_loading_info=True, attn_implementation="sdpa"
        )
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    return model.eval()


def original(source: Path, folder: Path) -> None:
    """A folder in the Hugging Face layout as one in that of the authors: the codec apart, queries and keys with the
    channels that turn together side by side, every name as torchtune has it."""
    fields = json.loads((source / "config.json").read_text())
    tensors, made = files.read_safetensors(source / "model.safetensors", "test")[0], {}
    names = {
        "input_layernorm.weight": "sa_norm.scale",
        "post_attention_layernorm.weight": "mlp_norm.scale",
        "self_attn.q_proj.weight": "attn.q_proj.weight",
        "self_attn.k_proj.weight": "attn.k_proj.weight",
        "self_attn.v_proj.weight": "attn.v_proj.weight",
        "self_attn.o_proj.weight": "attn.output_proj.weight",
        "mlp.gate_proj.weight": "mlp.w1.weight",
        "mlp.up_proj.weight": "mlp.w3.weight",
        "mlp.down_proj.weight": "mlp.w2.weight",
        "embed_text_tokens.weight": "text_embeddings.weight",
        "depth_decoder.model.embed_tokens.weight": "audio_embeddings.weight",
        "lm_head.weight": "codebook0_head.weight",
        "depth_decoder.codebooks_head.weight": "audio_head",
        "depth_decoder.model.inputs_embeds_projector.weight": "projection.weight",
        "backbone_model.norm.weight": "backbone.norm.scale",
        "depth_decoder.model.norm.weight": "decoder.norm.scale",
    }
    for name, x in tensors.items():
        prefix, rest = "", name
        for theirs, ours in (("backbone_model.layers.", "backbone"), ("depth_decoder.model.layers.", "decoder")):
            if name.startswith(theirs):
                n, _, rest = name.removeprefix(theirs).partition(".")
                prefix, width = f"{ours}.layers.{n}.", 6 if ours == "backbone" else 4
        if rest in ("self_attn.q_proj.weight", "self_attn.k_proj.weight"):
            heads, pairs, two = range(len(x) // width), range(width // 2), (0, width // 2)
            x = x[[head * width + pair + half for head in heads for pair in pairs for half in two]]
        if not name.startswith("codec_model."):
            made[prefix + names[rest]] = np.ascontiguousarray(x)
    files.write_json(folder / "config.json", fields)
    files.write_safetensors(folder / "model.safetensors", made, {"format": "pt"})
    published_codecs.write(folder / "codec", "mimi")
    tokenizer(folder / "tokenizer.json")
