"""Hugging Face model folders in and out: config.json and safetensors, nothing that could run code.

One table says how each tensor is called and laid out; loading, saving and adapters all read it.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

import huggingface_hub
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from e5jax import hf_bert, hf_decoder
from e5jax.architecture import Architecture
from e5jax.errors import UserError
from e5jax.settings import refuse
from e5jax.tensors import (
    DTYPES,
    digest_files,
    load_tensors,
    read_json,
    save_tensors,
    stored_tensors,
    weight_files,
)


FORMATS = {family: names for names in (hf_decoder, hf_bert) for family in names.FAMILIES}
# Keys that no architecture here heeds -> (the values that leave it ours, what any other asks for).
REFUSED = {
    "auto_map": ((), "code from the model's folder, which is never run"),
    "quantization_config": ((), "quantised weights"),
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


def load(directory: Path, cfg: Architecture, abstract: dict, shardings: dict | None, dtype: jnp.dtype) -> dict:
    """A model's weights in `dtype` -> its pure state, every device reading its own part.

    `abstract` is the pure state of an `eval_shape`d model, `shardings` the same tree of NamedShardings (None: the
    default device). Raises UserError naming the tensors that are missing, unexpected, of another shape or not finite.
    """
    names = FORMATS[cfg.family]
    prefix = re.compile("|".join(map(re.escape, names.PREFIXES)))

    def ours(name):
        bare = name[match.end() :] if (match := prefix.match(name)) else name
        old = next((old for old in names.RENAMED if bare.endswith(old)), None)
        return bare if old is None else bare.removesuffix(old) + names.RENAMED[old]

    tensors = {ours(name): t for name, t in stored_tensors(weight_files(directory, "model")).items()}
    tensors = {name: tensor for name, tensor in tensors.items() if not re.fullmatch(names.NOT_OURS, name)}
    return load_tensors(tensors, names.table(cfg), abstract, shardings, dtype, directory)


def save(state: dict, cfg: Architecture, dtype: jnp.dtype, directory: Path, kept: Mapping | None = None) -> None:
    """A model's pure state -> config.json and model.safetensors (beyond 5 GB: several and an index).

    transformers, sentence-transformers, TEI and vLLM read them, and `load` bit for bit where `dtype` is the state's.
    Other files of the folder stay. `kept` is `HFConfig.kept` of the model that this one came from.

    Raises UserError where the folder holds weights already.
    """
    names = FORMATS[cfg.family]
    if cfg.pooling == "latent":
        raise UserError("latent pooling has no place in Hugging Face's files: only e5jax reads such a model")
    if odd := set(flatten_dict(state, sep=".")) ^ set(names.table(cfg)):
        raise ValueError(f"not a bare model's state: {sorted(odd)[:5]}")
    name = jnp.dtype(dtype).name
    stated = {"model_type": cfg.family, **names.config_json(cfg), "dtype": name, "torch_dtype": name}
    save_tensors(state, names.table(cfg), dtype, directory, "model", {"config.json": dict(kept or {}) | stated})


@dataclasses.dataclass(frozen=True, kw_only=True)
class HFConfig:
    """What a config.json says."""

    architecture: Architecture
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
    if not isinstance(family, str) or family not in FORMATS:
        raise UserError(f"{where}: model_type {family!r} is none of {', '.join(FORMATS)}")
    refuse(stored, REFUSED, where)
    try:
        architecture = FORMATS[family].read_config(stored, where)
    except ValueError as error:  # sizes that do not go together
        raise UserError(f"{where}: {error}") from error
    raw = {k: v for k, v in stored.items() if v is not None}
    dtype = raw.get("dtype") or raw.get("torch_dtype") or _dtype_of_weights(directory)
    if dtype not in DTYPES.values():
        raise UserError(f"{where}: dtype {dtype!r} is none of {', '.join(DTYPES.values())}")
    return HFConfig(architecture=architecture, dtype=dtype, kept={k: raw[k] for k in KEPT if k in raw})


def _dtype_of_weights(directory: Path) -> str:
    tensors = stored_tensors(weight_files(directory, "model"))
    code = next(iter(tensors.values())).dtype if tensors else "missing"
    return DTYPES.get(code, code)
