"""Adapters in PEFT's format: adapter_config.json and adapter_model.safetensors.

PEFT stores A as [rank, in] and B as [out, rank], one pair a layer, under the name of the projection it hangs on.
"""

import dataclasses
import json
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import flatten_dict

from e5jax import hf, hf_bert, hf_decoder, lora
from e5jax.architecture import Architecture, Model
from e5jax.errors import UserError
from e5jax.settings import number, refuse
from e5jax.tensors import (
    Stored,
    Table,
    digest_files,
    load_tensors,
    read_json,
    save_tensors,
    stored_tensors,
    weight_files,
)


Targets = dict[str, tuple[str, int]]
"""Our name of a projection -> (its name there without ".weight", how many of our axes are its input)."""


def _targets(table: Table) -> Targets:
    return {path.split(".")[1]: (name.removesuffix(".weight"), n) for path, (name, n) in table.items() if n}


KINDS = tuple(map(_targets, (hf_decoder.TABLE, hf_bert.TABLE)))
PREFIX = "base_model.model."
OWN_BASE = "base"  # the folder inside an adapter's for a base that has no other place
PREFIXES = re.compile(r"base_model\.model\.((model|bert|roberta)\.)?")  # the second where the base has a head
# Keys that change the computation -> (the values that leave it ours, what any other asks for).
REFUSED = {
    "use_dora": ((False,), "DoRA"),
    "use_qalora": ((False,), "QALoRA"),
    "use_bdlora": ((False,), "block-diagonal LoRA"),
    "lora_bias": ((False,), "biases in the adapters"),
    "bias": (("none",), "trained biases"),
    "fan_in_fan_out": ((False,), "transposed weights"),
    "modules_to_save": (([],), "whole modules beside the adapters"),
    "trainable_token_indices": (([], {}), "trained rows of the embedding table"),
    "target_parameters": (([],), "adapters on bare parameters"),
    "rank_pattern": (({},), "a rank of its own for some projections"),
    "alpha_pattern": (({},), "an alpha of its own for some projections"),
    "layers_to_transform": (([],), "adapters on some of the layers"),
    "layer_replication": (([],), "layers used twice"),
    "alora_invocation_tokens": (([],), "adapters that wait for a token"),
    "arrow_config": ((), "routing among adapters"),
    "monteclora_config": ((), "sampled adapters"),
    "kasa_config": ((), "adapters on a truncated base"),
    # The others (PiSSA, OLoRA, ...) take their start out of the base's weights, so the base is not its files any more.
    "init_lora_weights": ((True, False, "gaussian", "orthogonal", "eva"), "a base changed at the start"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """What an adapter_config.json says."""

    rank: int
    alpha: float
    """The adapter's product counts alpha / rank; rank-stabilised LoRA (alpha / √rank) is folded in."""
    dropout: float
    targets: tuple[str, ...]
    base: str | None
    """Folder or hub name of the model that the adapter was trained on."""
    revision: str | None = None
    """Branch, tag or commit of a base on the hub."""


def read_adapter_config(directory: Path) -> AdapterConfig:
    """A closed reading of adapter_config.json; the targets are those whose tensors are there.

    Raises UserError naming file and key for anything that plain LoRA on our projections is not.
    """
    return _read(directory)[0]


def digest(directory: Path) -> str:
    """sha256 over the adapter's configuration and weights."""
    return digest_files([directory / "adapter_config.json", *weight_files(directory, "adapter_model")])


def load_adapter(directory: Path, model: Model) -> Model:
    """The same model with the folder's adapters (f32) hung on it; it must have none yet.

    Raises UserError for tensors that are missing, unexpected, of another shape or not finite.
    """
    config, tensors = _read(directory)
    graphdef, weights = nnx.split(model)

    def adapted(weights):
        model = nnx.merge(graphdef, weights)
        lora.adapt(model, config.rank, config.alpha, config.targets, jax.random.key(0))
        return nnx.split(model, nnx.LoRAParam, ...)

    graphdef, adapters, _ = jax.eval_shape(adapted, weights)
    shapes = nnx.to_pure_dict(adapters)
    nnx.replace_by_pure_dict(
        adapters, load_tensors(tensors, _table("", model.cfg), shapes, None, jnp.float32, directory)
    )
    return nnx.merge(graphdef, adapters, weights)


def save_adapter(state: dict, cfg: Architecture, config: AdapterConfig, directory: Path) -> None:
    """The adapters of a model (pure state of its LoRAParams) -> a folder that `peft.PeftModel` loads.

    Raises UserError where the folder holds an adapter already.
    """
    if cfg.pooling == "latent":
        raise UserError("latent pooling has no place in PEFT's files: only e5jax reads such adapters")
    if {path.split(".")[1] for path in flatten_dict(state, sep=".")} != set(config.targets):
        raise ValueError(f"not the adapters of {config.targets}: {sorted(flatten_dict(state, sep='.'))[:5]}")
    of_model = _targets(hf.FORMATS[cfg.family].TABLE)
    content = {
        "peft_type": "LORA",
        "task_type": "FEATURE_EXTRACTION",
        "base_model_name_or_path": config.base,
        "revision": config.revision,
        "r": config.rank,
        "lora_alpha": int(config.alpha) if config.alpha == int(config.alpha) else config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": _target_modules([of_model[target][0] for target in config.targets]),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    save_tensors(state, _table(PREFIX, cfg), jnp.float32, directory, "adapter_model", {"adapter_config.json": content})


def _target_modules(names: list[str]) -> list[str] | str:
    """How PEFT is told the projections: by their last word, or by a pattern where several share it (BERT's `dense`)."""
    last = sorted(name.split(".")[-1] for name in names)
    if "dense" not in last:
        return last
    return "|".join(".*" + re.escape(name).replace(re.escape("{}"), "[0-9]+") for name in names)


def _table(prefix: str, cfg: Architecture) -> Table:
    """The tensors of adapters: A has the projection's inputs, B has one, the rank."""
    return {
        f"layers.{target}.adapter.{ours}": (f"{prefix}{name}.lora_{theirs}.weight", inputs)
        for target, (name, n) in _targets(hf.FORMATS[cfg.family].TABLE).items()
        for ours, theirs, inputs in (("a", "A", n), ("b", "B", 1))
    }


def _read(directory: Path) -> tuple[AdapterConfig, dict[str, Stored]]:
    where = directory / "adapter_config.json"
    raw = read_json(where)
    if raw.get("peft_type") != "LORA":
        raise UserError(f"{where}: peft_type {json.dumps(raw.get('peft_type'))} is not LORA")
    refuse(raw, REFUSED, where)
    stored = stored_tensors(weight_files(directory, "adapter_model"))
    tensors = {PREFIXES.sub("", name, count=1): tensor for name, tensor in stored.items()}
    # PEFT's "all-linear" adapts BERT's pooler, which is no part of the hidden states.
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("pooler.")}
    found = [
        {t: name for t, (name, _) in kind.items() if f"{name.format(0)}.lora_A.weight" in tensors} for kind in KINDS
    ]
    names = max(found, key=len)
    targets = tuple(names)
    listed = raw.get("target_modules")  # a list, or a pattern that the tensors have answered
    absent = [
        name
        for name in (listed if isinstance(listed, list) else ())
        if not any(there.split(".")[-1] == str(name).split(".")[-1] for there in names.values())
    ]
    if absent or not targets:
        raise UserError(f"{where}: target_modules {json.dumps(absent or listed)}: no adapters on them in {directory}")
    rank = number(raw, "r", int, where)
    alpha = number(raw, "lora_alpha", float, where)
    dropout = raw.get("lora_dropout") or 0.0
    return AdapterConfig(
        rank=rank,
        alpha=alpha * math.sqrt(rank) if raw.get("use_rslora") else alpha,
        dropout=dropout and number(raw, "lora_dropout", float, where),
        targets=targets,
        base=raw.get("base_model_name_or_path"),
        revision=raw.get("revision"),
    ), tensors
