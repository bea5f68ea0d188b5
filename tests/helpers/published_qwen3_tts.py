"""A Qwen3-TTS of odd small sizes with random weights, written as a folder in the published layout."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from tests.helpers import published_codecs

CODES, CODEBOOKS, CONTROL, TEXT_ROWS = 32, 3, 21, 340
WORDS = [
    "assistant",
    "user",
] * 9 + "good morning evening slow fast whisper three one four two five who is there".split()
ADDED = ("<|im_start|>", "<|im_end|>", "<tts_pad>", "<tts_text_bos>", "<tts_text_eod>")


def block(**changes) -> dict:
    sizes = {"hidden_size": 20, "intermediate_size": 26, "num_hidden_layers": 3, "num_attention_heads": 6}
    sizes |= {"num_key_value_heads": 2, "head_dim": 8, "rms_norm_eps": 1e-5, "rope_theta": 500.0, "hidden_act": "silu"}
    return {**sizes, "attention_bias": False, "use_sliding_window": False, **changes}


def config(
    kind: str = "custom_voice", first: int = 0, predictor_width: int = 12, text_width: int = 14, **changes
) -> dict:
    """A config.json. first: the id of the first of ADDED. changes: of the talker's block."""
    names = ("pad", "bos", "eos_token", "think", "nothink", "think_bos", "think_eos")
    marks = {f"codec_{name}_id": CODES + 5 + n for n, name in enumerate(names)}
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "interleaved": True}
    predictor = block(
        hidden_size=predictor_width, num_hidden_layers=2, num_attention_heads=4, head_dim=6, rope_theta=300.0
    )
    predictor |= {"vocab_size": CODES, "num_code_groups": CODEBOOKS}
    talker = block(vocab_size=CODES + CONTROL, num_code_groups=CODEBOOKS, rope_scaling=rope, **changes)
    talker |= {
        "text_vocab_size": TEXT_ROWS,
        "text_hidden_size": text_width,
        **marks,
        "code_predictor_config": predictor,
    }
    talker |= {"codec_language_id": {"chinese": CODES, "english": CODES + 1, "beijing_dialect": CODES + 2}}
    named = {"spk_id": {"ryan": CODES + 18, "dylan": CODES + 20}, "spk_is_dialect": {"ryan": False}}
    named["spk_is_dialect"]["dylan"] = "beijing_dialect"
    empty = {"spk_id": {}, "spk_is_dialect": {}}
    talker |= named if kind == "custom_voice" else empty
    ids = {"im_start_token_id": 0, "im_end_token_id": 1, "tts_pad_token_id": 2, "tts_bos_token_id": 3}
    ids = {name: first + n for name, n in (ids | {"tts_eos_token_id": 4}).items()}
    about = {"model_type": "qwen3_tts", "tts_model_type": kind, "tts_model_size": "1b7", **ids}
    return {**about, "tokenizer_type": "qwen3_tts_tokenizer_12hz", "talker_config": talker}


def tensors(config: dict, seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights under their published names."""
    rng, found = np.random.default_rng(seed), {}
    talker = config["talker_config"]
    predictor = talker["code_predictor_config"]
    D, d, W = talker["hidden_size"], predictor["hidden_size"], talker["text_hidden_size"]

    def put(name: str, *shape: int, gain: bool = False) -> None:
        scale = 0.3 if len(shape) == 1 else 1.5 / np.sqrt(shape[-1])
        found[name] = (rng.normal(0, scale, shape) + gain).astype(np.float32)

    def layers(name: str, c: dict) -> None:
        width, K = c["hidden_size"], c["head_dim"]
        for n in range(c["num_hidden_layers"]):
            at = f"{name}.layers.{n}"
            heads = {"q": c["num_attention_heads"], "k": c["num_key_value_heads"], "v": c["num_key_value_heads"]}
            for part, count in heads.items():
                put(f"{at}.self_attn.{part}_proj.weight", count * K, width)
            put(f"{at}.self_attn.o_proj.weight", width, heads["q"] * K)
            for part in "qk":
                put(f"{at}.self_attn.{part}_norm.weight", K, gain=True)
            for part in ("gate", "up"):
                put(f"{at}.mlp.{part}_proj.weight", c["intermediate_size"], width)
            put(f"{at}.mlp.down_proj.weight", width, c["intermediate_size"])
            for part in ("input_layernorm", "post_attention_layernorm"):
                put(f"{at}.{part}.weight", width, gain=True)
        put(f"{name}.norm.weight", width, gain=True)

    put("talker.model.codec_embedding.weight", talker["vocab_size"], D)
    put("talker.model.text_embedding.weight", talker["text_vocab_size"], W)
    for n, width in ((1, W), (2, D)):
        put(f"talker.text_projection.linear_fc{n}.weight", width, W)
        put(f"talker.text_projection.linear_fc{n}.bias", width)
    layers("talker.model", talker)
    put("talker.codec_head.weight", talker["vocab_size"], D)
    found["talker.codec_head.weight"][talker["codec_eos_token_id"]] *= 0.2  # so that audio is longer than its text
    for q in range(talker["num_code_groups"] - 1):
        put(f"talker.code_predictor.model.codec_embedding.{q}.weight", predictor["vocab_size"], D)
        put(f"talker.code_predictor.lm_head.{q}.weight", predictor["vocab_size"], d)
    layers("talker.code_predictor.model", predictor)
    if d != D:
        put("talker.code_predictor.small_to_mtp_projection.weight", d, D)
        put("talker.code_predictor.small_to_mtp_projection.bias", d)
    if config["tts_model_type"] == "base":
        put("speaker_encoder.blocks.0.conv.weight", 3, 5, 2)
    return found


def write_tokenizer(folder: Path) -> int:
    """vocab.json, merges.txt and tokenizer_config.json; returns the id of the first of ADDED."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(WORDS * 3, trainer)
    made.model.save(str(folder))
    first = made.get_vocab_size()
    added = {str(first + n): {"content": token, "special": True} for n, token in enumerate(ADDED)}
    about = {"added_tokens_decoder": added, "tokenizer_class": "Qwen2Tokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    return first


def write(folder: Path, kind: str = "custom_voice", **changes) -> dict[str, np.ndarray]:
    """A checkpoint; returns its tensors. changes: of `config`."""
    folder.mkdir(parents=True, exist_ok=True)
    fields = config(kind, write_tokenizer(folder), **changes)
    published_codecs.write(folder / "speech_tokenizer", "qwen3")
    found = tensors(fields)
    (folder / "config.json").write_text(json.dumps(fields))
    save_file(found, folder / "model.safetensors", {"format": "pt"})
    return found
