"""Hugging Face's names for a decoder: the tensors and config.json of Mistral, Llama and Qwen 3."""

import json
from collections.abc import Mapping
from pathlib import Path

from e5jax.decoder import DecoderConfig
from e5jax.errors import UserError
from e5jax.settings import number, refuse
from e5jax.tensors import Table


TABLE: Table = {
    "embed": ("embed_tokens.weight", 0),
    "layers.attn_norm.scale": ("layers.{}.input_layernorm.weight", 0),
    "layers.q.w": ("layers.{}.self_attn.q_proj.weight", 1),
    "layers.k.w": ("layers.{}.self_attn.k_proj.weight", 1),
    "layers.v.w": ("layers.{}.self_attn.v_proj.weight", 1),
    "layers.o.w": ("layers.{}.self_attn.o_proj.weight", 2),
    "layers.mlp_norm.scale": ("layers.{}.post_attention_layernorm.weight", 0),
    "layers.gate.w": ("layers.{}.mlp.gate_proj.weight", 1),
    "layers.up.w": ("layers.{}.mlp.up_proj.weight", 1),
    "layers.down.w": ("layers.{}.mlp.down_proj.weight", 1),
    "norm.scale": ("norm.weight", 0),
}
QK_NORM: Table = {
    "layers.q_norm.scale": ("layers.{}.self_attn.q_norm.weight", 0),
    "layers.k_norm.scale": ("layers.{}.self_attn.k_norm.weight", 0),
}
PREFIXES = ("model.",)  # in front of every name where the file holds a model with a head
RENAMED = {}
NOT_OURS = r"lm_head\.weight|.*rotary_emb\.inv_freq"  # the head; a table of angles

# model_type -> its class, and what transformers (5.23) takes for a key that is absent.
FAMILIES: dict[str, tuple[str, dict]] = {
    "mistral": ("MistralModel", {"num_key_value_heads": 8, "sliding_window": 4096}),
    "llama": ("LlamaModel", {}),
    "qwen3": (
        "Qwen3Model",
        {
            "num_key_value_heads": 32,
            "head_dim": 128,
            "sliding_window": 4096,
            "use_sliding_window": False,
            "max_window_layers": 28,
        },
    ),
}
SIZES = {  # ours -> theirs
    "vocab_size": "vocab_size",
    "dim": "hidden_size",
    "hidden": "intermediate_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
}
# Keys that change the computation -> (the values that leave it ours, what any other asks for).
REFUSED = {
    "attention_bias": ((False,), "biases in the attention"),
    "mlp_bias": ((False,), "biases in the MLP"),
    "hidden_act": (("silu",), "another activation than silu"),
    "is_causal": ((True, False), "another kind of mask"),
    "partial_rotary_factor": ((1,), "rotary positions on a part of each head"),
    "pretraining_tp": ((0, 1), "products computed in slices"),
}


def table(cfg: DecoderConfig) -> Table:
    """The tensors of a decoder."""
    return TABLE | (QK_NORM if cfg.qk_norm else {})


def read_config(stored: Mapping, where: Path) -> DecoderConfig:
    """What a config.json says; an absent key means what it means in transformers."""
    family = stored["model_type"]
    raw = {k: v for k, v in (FAMILIES[family][1] | stored).items() if v is not None}
    refuse(raw, REFUSED, where)
    heads = number(raw, "num_attention_heads", int, where)
    derived = {
        "num_key_value_heads": heads,
        "head_dim": number(raw, "hidden_size", int, where) // heads,
    }
    fields = {ours: number(derived | raw, theirs, int, where) for ours, theirs in SIZES.items()}
    return DecoderConfig(
        **fields,
        family=family,
        window=_window(raw, fields["layers"], where),
        rope_theta=_rope_theta(raw, where),
        norm_eps=number({"rms_norm_eps": 1e-6} | raw, "rms_norm_eps", float, where),
        qk_norm=family == "qwen3",
        causal=raw.get("is_causal", True),
    )


def _rope_theta(raw: Mapping, where: Path) -> float:
    """transformers 4 writes rope_theta beside rope_scaling, 5 both in rope_parameters."""
    theta = raw.get("rope_theta", 1e4)
    for key in ("rope_parameters", "rope_scaling"):
        rope = raw.get(key) or {}
        if not isinstance(rope, dict) or any(isinstance(v, dict) for v in rope.values()):
            raise UserError(f"{where}: {key} {json.dumps(rope)} is not one rope for all layers")
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default":
            raise UserError(f"{where}: {key} asks for {kind!r} rope; e5jax has the default one only")
        refuse(rope, REFUSED, where)
        theta = rope.get("rope_theta", theta)
    return number({"rope_theta": theta}, "rope_theta", float, where)


def _window(raw: Mapping, layers: int, where: Path) -> int | None:
    """The one sliding window of all layers, or None.

    Qwen slides only under use_sliding_window, from layer max_window_layers on; it alone heeds layer_types.
    """
    family, window, kinds = raw["model_type"], raw.get("sliding_window"), raw.get("layer_types")
    if family == "qwen3" and not raw.get("use_sliding_window"):
        window = None
    first = raw.get("max_window_layers") if family == "qwen3" else 0
    if kinds is None and isinstance(first, int):
        slides = [window is not None and i >= first for i in range(layers)]
        kinds = ["sliding_attention" if s else "full_attention" for s in slides]
    if kinds == ["full_attention"] * layers and (window is None or family == "qwen3"):
        return None
    if kinds == ["sliding_attention"] * layers and window is not None and family != "llama":
        return number(raw, "sliding_window", int, where)
    raise UserError(
        f"{where}: sliding_window {json.dumps(window)} with layer_types {json.dumps(kinds)} in a {family}: either all "
        "layers share one window (a llama has none) or none has one"
    )


def config_json(cfg: DecoderConfig) -> dict:
    """Both spellings of rope: for transformers 4 and 5, sentence-transformers, TEI and vLLM alike."""
    if cfg.family == "llama" and cfg.window is not None:
        raise UserError("a llama's config.json has no sliding window: family must be mistral")
    slides = {"use_sliding_window": cfg.window is not None, "max_window_layers": 0}
    return {
        "architectures": [FAMILIES[cfg.family][0]],
        **{theirs: getattr(cfg, ours) for ours, theirs in SIZES.items()},
        "hidden_act": "silu",
        "attention_bias": False,
        "initializer_range": 0.02,  # of no use to trained weights, but TEI reads no config without it
        "rms_norm_eps": cfg.norm_eps,
        "rope_theta": cfg.rope_theta,
        "rope_parameters": {"rope_theta": cfg.rope_theta, "rope_type": "default"},
        "sliding_window": cfg.window,
        **(slides if cfg.family == "qwen3" else {}),
        **({} if cfg.causal else {"is_causal": False}),
        "use_cache": False,
    }
