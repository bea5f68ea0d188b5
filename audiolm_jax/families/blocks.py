"""Sizes of published networks, from a config.json: for every family, and for those that consist of Qwen3 blocks."""

from collections.abc import Iterable
from typing import Any

from audiolm_jax.errors import InputError
from audiolm_jax.hub import files as huggingface

SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")


def numbers(fields: dict, prefix: str, names: Iterable[str], least: int, what: str) -> None:
    """Raises InputError unless all of these are integers, from `least` up. The defaults of the references are those of
    no published checkpoint, so none is assumed. prefix: of the names in a message, which begins with `what`."""
    wrong = [name for name in names if type(fields.get(name)) is not int or not least <= fields[name] < 2**31]
    if wrong:
        listed = f", {prefix}".join(wrong)
        raise InputError(f"{what}: {huggingface.CONFIG} lacks {prefix}{listed}, or a usable number")


def qwen3(fields: dict, prefix: str, what: str) -> dict[str, Any]:
    """Fields of a ModelConfig or DepthConfig. Raises InputError for more than sizes that differ from such a block."""
    scaling = huggingface.part(fields, "rope_scaling", what) or huggingface.part(fields, "rope_parameters", what)
    for name, value, accepted in (
        ("hidden_act", fields.get("hidden_act", "silu"), "silu"),
        ("attention_bias", fields.get("attention_bias", False), False),
        ("use_sliding_window", fields.get("use_sliding_window", False), False),
        ("rope_scaling", scaling.get("rope_type", scaling.get("type", "default")), "default"),
    ):
        if value != accepted:
            raise InputError(f"{what}: {prefix}{name}={value!r} is not supported; known is {accepted!r}")
    width, heads = fields["hidden_size"], fields["num_attention_heads"]
    return {
        "layers": fields["num_hidden_layers"],
        "width": width,
        "heads": heads,
        "kv_heads": fields["num_key_value_heads"],
        "head_width": fields.get("head_dim") or width // heads,
        "ffn": fields["intermediate_size"],
        "norm_eps": fields.get("rms_norm_eps", 1e-6),
        "qk_norm": True,
        "rope_base": float(fields.get("rope_theta") or scaling.get("rope_theta") or 10000),
    }
