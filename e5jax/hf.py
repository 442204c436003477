"""Hugging Face model folders in and out: config.json and safetensors, nothing that could run code.

One table says how each tensor is called and laid out; loading, saving and adapters all read it.
"""

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path

import huggingface_hub
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from e5jax.decoder import DecoderConfig
from e5jax.errors import UserError
from e5jax.tensors import (
    DTYPES,
    Table,
    digest_files,
    load_tensors,
    read_json,
    save_tensors,
    stored_tensors,
    weight_files,
)


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
PREFIX = "model."  # in front of every name where the file holds a model with a head
NOT_OURS = re.compile(r"lm_head\.weight|.*rotary_emb\.inv_freq")  # the head; a table of angles

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
    "auto_map": ((), "code from the model's folder, which is never run"),
    "quantization_config": ((), "quantised weights"),
    "attention_bias": ((False,), "biases in the attention"),
    "mlp_bias": ((False,), "biases in the MLP"),
    "hidden_act": (("silu",), "another activation than silu"),
    "is_causal": ((True,), "attention in both directions"),
    "partial_rotary_factor": ((1,), "rotary positions on a part of each head"),
    "pretraining_tp": ((0, 1), "products computed in slices"),
}
# Keys that change no hidden state but mean something to whoever serves the model.
KEPT = ("max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id")


def resolve(name: str, revision: str | None) -> Path:
    """A folder as it is, or else a hub repository's snapshot: JSON, safetensors and tokenizer files only.

    Raises UserError where `name` is neither.
    """
    if name and Path(name).is_dir():
        return Path(name)
    try:
        snapshot = huggingface_hub.snapshot_download(
            name,
            revision=revision,
            allow_patterns=["*.json", "*.safetensors", "tokenizer*"],
            ignore_patterns=["consolidated*", "original/*"],  # the same weights once more
        )
    except (OSError, ValueError) as error:  # what the hub's errors derive from, offline or not
        raise UserError(
            f"{name!r} is not a folder here, and the Hugging Face hub did not give it either: {error}"
        ) from error
    return Path(snapshot)


def digest(directory: Path) -> str:
    """sha256 over config.json and the weights."""
    return digest_files([directory / "config.json", *weight_files(directory, "model")])


def table(cfg: DecoderConfig) -> Table:
    """The tensors of a decoder."""
    return TABLE | (QK_NORM if cfg.qk_norm else {})


def load(directory: Path, cfg: DecoderConfig, abstract: dict, shardings: dict | None, dtype: jnp.dtype) -> dict:
    """A decoder's weights in `dtype` -> its pure state, every device reading its own part.

    `abstract` is the pure state of an `eval_shape`d Decoder, `shardings` the same tree of NamedShardings (None: the
    default device). Raises UserError naming the tensors that are missing, unexpected, of another shape or not finite.
    """
    stored = stored_tensors(weight_files(directory, "model"))
    tensors = {name.removeprefix(PREFIX): tensor for name, tensor in stored.items()}
    tensors = {name: tensor for name, tensor in tensors.items() if not NOT_OURS.fullmatch(name)}
    return load_tensors(tensors, table(cfg), abstract, shardings, dtype, directory)


def save(state: dict, cfg: DecoderConfig, dtype: jnp.dtype, directory: Path, kept: Mapping | None = None) -> None:
    """A decoder's pure state -> config.json and model.safetensors (beyond 5 GB: several and an index).

    transformers, sentence-transformers, TEI and vLLM read them, and `load` bit for bit where `dtype` is the state's.
    Other files of the folder stay. `kept` is `HFConfig.kept` of the model that this one came from.

    Raises UserError where the folder holds weights already.
    """
    if odd := set(flatten_dict(state, sep=".")) ^ set(table(cfg)):
        raise ValueError(f"not a bare decoder's state: {sorted(odd)[:5]}")
    config = {"config.json": _config_json(cfg, jnp.dtype(dtype).name, kept or {})}
    save_tensors(state, table(cfg), dtype, directory, "model", config)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HFConfig:
    """What a config.json says."""

    decoder: DecoderConfig
    dtype: str
    """float32, bfloat16 or float16: how the weights are stored."""
    kept: dict
    """Keys that mean nothing here, for `save` to pass on."""


def read_config(directory: Path) -> HFConfig:
    """A closed reading of config.json, as transformers 4 and 5 spell it; an absent key means what it means there.

    Raises UserError, naming file and key, for an unknown model_type, a key that asks for what is not here, and a size
    that is missing or no number. Keys that change no hidden state are ignored.
    """
    where = directory / "config.json"
    stored = read_json(where)
    family = stored.get("model_type")
    if family not in tuple(FAMILIES):
        raise UserError(f"{where}: model_type {family!r} is none of {', '.join(FAMILIES)}")
    raw = {k: v for k, v in (FAMILIES[family][1] | stored).items() if v is not None}
    refuse(raw, REFUSED, where)
    heads = number(raw, "num_attention_heads", int, where)
    derived = {
        "num_key_value_heads": heads,
        "head_dim": number(raw, "hidden_size", int, where) // heads,
    }
    fields = {ours: number(derived | raw, theirs, int, where) for ours, theirs in SIZES.items()}
    fields |= {
        "window": _window(raw, fields["layers"], where),
        "rope_theta": _rope_theta(raw, where),
        "norm_eps": number({"rms_norm_eps": 1e-6} | raw, "rms_norm_eps", float, where),
        "qk_norm": family == "qwen3",
        "family": family,
    }
    try:
        decoder = DecoderConfig(**fields)
    except ValueError as error:  # sizes that do not go together
        raise UserError(f"{where}: {error}") from error
    dtype = raw.get("dtype") or raw.get("torch_dtype") or _dtype_of_weights(directory)
    if dtype not in DTYPES.values():
        raise UserError(f"{where}: dtype {dtype!r} is none of {', '.join(DTYPES.values())}")
    return HFConfig(decoder=decoder, dtype=dtype, kept={k: raw[k] for k in KEPT if k in raw})


def refuse(raw: Mapping, refused: Mapping, where: Path):
    """UserError for the first key that is neither absent nor null nor harmless."""
    for key, (harmless, asks_for) in refused.items():
        if raw.get(key) not in (None, *harmless):
            raise UserError(f"{where}: {key}: {json.dumps(raw[key])} asks for {asks_for}; e5jax has no such thing")


def number(raw: Mapping, key: str, kind: type, where: Path):
    """The positive number under a key. Raises UserError for anything else."""
    value = raw.get(key)
    if value is None:
        raise UserError(f"{where}: {key} is missing")
    kinds = int if kind is int else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value < math.inf:
        raise UserError(f"{where}: {key} must be a positive number, not {json.dumps(value)}")
    return kind(value)


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


def _dtype_of_weights(directory: Path) -> str:
    tensors = stored_tensors(weight_files(directory, "model"))
    code = next(iter(tensors.values())).dtype if tensors else "missing"
    return DTYPES.get(code, code)


def _config_json(cfg: DecoderConfig, dtype: str, kept: Mapping) -> dict:
    """Both spellings of dtype and rope: for transformers 4 and 5, sentence-transformers, TEI and vLLM alike."""
    if cfg.family == "llama" and cfg.window is not None:
        raise UserError("a llama's config.json has no sliding window: family must be mistral")
    slides = {"use_sliding_window": cfg.window is not None, "max_window_layers": 0}
    return dict(kept) | {
        "architectures": [FAMILIES[cfg.family][0]],
        "model_type": cfg.family,
        **{theirs: getattr(cfg, ours) for ours, theirs in SIZES.items()},
        "hidden_act": "silu",
        "attention_bias": False,
        "initializer_range": 0.02,  # of no use to trained weights, but TEI reads no config without it
        "rms_norm_eps": cfg.norm_eps,
        "rope_theta": cfg.rope_theta,
        "rope_parameters": {"rope_theta": cfg.rope_theta, "rope_type": "default"},
        "sliding_window": cfg.window,
        **(slides if cfg.family == "qwen3" else {}),
        "dtype": dtype,
        "torch_dtype": dtype,
        "use_cache": False,
    }
