"""MusicGen of odd small sizes with random weights, as a folder in the Hugging Face layout that `transformers` saved."""

import dataclasses
import gc
import json
import warnings
from pathlib import Path

from experiments.colab.random_musicgen import TEXT, small_decoder, tokenizer

# Other layers, heads, codebooks; with a projection of the states and without; stereo.
SIZES = {
    "mono": (small_decoder(), TEXT, (0.5, 2.0)),
    "two-codebooks": (
        small_decoder(hidden_size=24, num_attention_heads=2, num_hidden_layers=1, num_codebooks=2),
        {**TEXT, "d_model": 24, "feed_forward_proj": "gated-gelu"},
        (1.0,),
    ),
    "stereo": (small_decoder(audio_channels=2, num_codebooks=4), TEXT, (1.0,)),
}


def made(folder: Path, sizes: tuple, seed: int = 0, born: bool = False, melody: dict | None = None, **codec_changes):
    """The model of `transformers` that was saved to `folder`: random weights that make logits differ.

    melody: fields of the configuration, of a model that follows melodies. born: about as large as at birth; many layers
    of larger ones amplify what float32 rounds.
    """
    import torch
    import transformers

    from tests.helpers import published_codecs

    decoder, text, bandwidths = sizes
    small = published_codecs.CONFIGS["encodec-centred"]
    codec = dataclasses.replace(small, target_bandwidths=bandwidths, **codec_changes)
    published_codecs.write(folder / "codec", "encodec", codec)
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parts = {
            "text_encoder": transformers.T5EncoderModel(transformers.T5Config(**text)),
            "audio_encoder": transformers.EncodecModel.from_pretrained(folder / "codec"),
        }
        if melody is None:
            parts["decoder"] = transformers.MusicgenForCausalLM(transformers.MusicgenDecoderConfig(**decoder))
            model = transformers.MusicgenForConditionalGeneration(**parts).eval()
        else:
            parts["decoder"] = follower(decoder)
            config = transformers.MusicgenMelodyConfig(**{n: part.config for n, part in parts.items()}, **melody)
            model = transformers.MusicgenMelodyForConditionalGeneration(config, **parts).eval()
        with torch.no_grad():
            for part, parameter in model.named_parameters():
                if not part.startswith("audio_encoder."):
                    wide = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 and "embed" not in part else 0.3
                    if born and part.endswith("SelfAttention.q.weight"):  # T5's scores are not scaled
                        wide *= text["d_kv"] ** -0.5
                    parameter.copy_(
                        (parameter.ndim == 1) * parameter + (1.0 if born else 1.5) * wide * torch.randn_like(parameter)
                    )
        special = decoder.get("vocab_size", 2048)
        for name in ("pad_token_id", "bos_token_id", "decoder_start_token_id"):
            setattr(model.generation_config, name, special)
        model.save_pretrained(folder)
    del model, parameter
    gc.collect()  # large ones would be in memory twice
    tokenizer(folder / "tokenizer.json")
    return reopened(folder)


def follower(decoder: dict):
    """The decoder of `transformers` that has melody and text before its tokens."""
    from transformers.models.musicgen_melody import configuration_musicgen_melody, modeling_musicgen_melody

    config = configuration_musicgen_melody.MusicgenMelodyDecoderConfig(**decoder)
    return modeling_musicgen_melody.MusicgenMelodyForCausalLM(config)


def reopened(folder: Path):
    """The model of `transformers` in a folder; nothing may be missing in it or too much."""
    import transformers

    melody = json.loads((folder / "config.json").read_text())["model_type"] == "musicgen_melody"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, report = getattr(transformers, f"Musicgen{'Melody' * melody}ForConditionalGeneration").from_pretrained(
            folder, output_loading_info=True, attn_implementation="eager"
        )
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    return model.eval()
