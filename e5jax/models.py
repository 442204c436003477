"""One door for every kind of model: a workdir, one of its checkpoints, a Hugging Face directory, a hub name."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from e5jax import checkpoint, hf, lora, peft_format
from e5jax import workdir as workdirs
from e5jax.decoder import Decoder, DecoderConfig
from e5jax.errors import UserError
from e5jax.formats import INSTRUCT, Prompts, Tokenizer
from e5jax.sharding import shardings
from e5jax.tensors import read_json


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpenedModel:
    """A decoder with its weights, and what is needed to use it."""

    model: Decoder
    tokenizer: Tokenizer
    dtype: jnp.dtype
    max_length: int | None
    """What it was trained with; None where its files do not say."""
    digest: str
    prompts: Prompts
    """What its files want in front of texts."""


def abstract(cfg: DecoderConfig, dtype: jnp.dtype):
    """(graphdef, state) of a decoder without weights."""
    return jax.eval_shape(lambda: nnx.split(Decoder(cfg, dtype, rngs=nnx.Rngs(0))))


def open_model(name: str, *, revision: str | None, mesh: Mesh | None, dtype: jnp.dtype | None) -> OpenedModel:
    """Load a model with its weights in `dtype` (None: as stored), adapters merged, laid out on the mesh.

    Raises UserError where `name` is no model or its files cannot be used.
    """
    path = Path(name).expanduser()
    if workdirs.is_run(path) or (path.parent.name == "checkpoints" and workdirs.is_run(path.parent.parent)):
        return _open_run(path, mesh, dtype)
    directory = path if path.is_dir() else hf.resolve(name, revision)
    if (directory / "adapter_config.json").is_file():
        return _open_peft(directory, mesh, dtype)
    files = hf.read_config(directory)
    check_pooling(directory)
    dtype = jnp.dtype(dtype or files.dtype)
    return OpenedModel(
        model=read_weights(directory, files.decoder, mesh, dtype),
        tokenizer=Tokenizer.load(directory),
        dtype=dtype,
        max_length=None,
        digest=hf.digest(directory),
        prompts=Prompts(query=None),
    )


def check_pooling(directory: Path) -> None:
    """UserError where a sentence-transformers folder asks for another pooling than the last token."""
    path = directory / "1_Pooling" / "config.json"
    if not path.is_file():
        return
    raw = read_json(path)
    asked = {raw[key] for key in ("pooling_mode",) if key in raw}
    asked |= {key.removeprefix("pooling_mode_") for key, on in raw.items() if key.startswith("pooling_mode_") and on}
    if asked - {"lasttoken"}:
        raise UserError(f"{path}: pooling {', '.join(sorted(asked))}; only the last token's is here so far")


def read_weights(directory: Path, cfg: DecoderConfig, mesh: Mesh | None, dtype) -> Decoder:
    """A decoder with the weights of a Hugging Face directory."""
    graphdef, state = abstract(cfg, dtype)
    layout = None if mesh is None else nnx.to_pure_dict(shardings(state, mesh))
    weights = hf.load(directory, cfg, nnx.to_pure_dict(state), layout, dtype)
    nnx.replace_by_pure_dict(state, weights)
    return nnx.merge(graphdef, state)


def _open_peft(directory, mesh, dtype):
    """An adapter in PEFT's format, merged into the base that it names."""
    config = peft_format.read_adapter_config(directory)
    if config.base is None:
        raise UserError(f"{directory / 'adapter_config.json'}: base_model_name_or_path names no model")
    base = open_model(config.base, revision=None, mesh=mesh, dtype=dtype)
    has_tokenizer = (directory / "tokenizer.json").is_file()
    return dataclasses.replace(
        base,
        model=_merged(peft_format.load_adapter(directory, base.model)),
        tokenizer=Tokenizer.load(directory) if has_tokenizer else base.tokenizer,
        digest=peft_format.digest(directory),
    )


def _merged(model: Decoder) -> Decoder:
    """Adapters added into the base, in the base's own memory."""
    graphdef, adapters, base = nnx.split(model, nnx.LoRAParam, ...)

    def merge(adapters, base):
        return nnx.split(lora.merge(nnx.merge(graphdef, adapters, base)))

    bare, _ = jax.eval_shape(merge, adapters, base)
    weights = jax.jit(lambda a, b: merge(a, b)[1], donate_argnums=1)(adapters, base)
    return nnx.merge(bare, weights)


def _open_run(path, mesh, dtype):
    workdir, step_dir = checkpoint.find_step(path)
    config = workdirs.read_config(workdir)
    cfg = DecoderConfig(**config["run"]["decoder"])
    dtype = jnp.dtype(dtype or config["model"]["dtype"])
    if config["lora"] is None:
        model = _with_params(lambda: Decoder(cfg, jnp.float32, rngs=nnx.Rngs(0)), step_dir, mesh, nnx.Param)
        model = jax.tree.map(lambda w: w.astype(dtype), model)
    else:
        model = _with_adapters(workdir, step_dir, config, cfg, mesh, dtype)
    return OpenedModel(
        model=model,
        tokenizer=Tokenizer.load(workdir / "tokenizer"),
        dtype=dtype,
        max_length=config["data"]["max_length"],
        digest=checkpoint.digest(step_dir),
        prompts=Prompts(query=INSTRUCT),
    )


def _with_adapters(workdir, step_dir, config, cfg, mesh, dtype):
    if (workdir / "base").is_dir():
        base = read_weights(workdir / "base", cfg, mesh, dtype)
    else:
        source = config["model"]
        opened = open_model(source["base"], revision=source["revision"], mesh=mesh, dtype=dtype)
        if opened.digest != config["run"]["base"]:
            raise UserError(f"{workdir} was trained on {source['base']} as it was then; those files have changed since")
        base = opened.model

    def with_adapters():
        model = Decoder(cfg, dtype, rngs=nnx.Rngs(0))
        settings = config["lora"]
        return lora.adapt(model, settings["rank"], settings["alpha"], settings["targets"], jax.random.key(0))

    adapted = _with_params(with_adapters, step_dir, mesh, nnx.LoRAParam)
    graphdef, adapters, _ = nnx.split(adapted, nnx.LoRAParam, ...)
    return _merged(nnx.merge(graphdef, adapters, nnx.state(base)))


def _with_params(make, step_dir, mesh, kind):
    """The module that `make` builds, its parameters of `kind` read from a checkpoint, the others abstract."""
    graphdef, params, rest = jax.eval_shape(lambda: nnx.split(make(), kind, ...))
    placed = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        nnx.to_pure_dict(params),
        nnx.to_pure_dict(shardings(params, mesh)) if mesh is not None else _one_device(params),
    )
    nnx.replace_by_pure_dict(params, checkpoint.read_params(step_dir, placed))
    return nnx.merge(graphdef, params, rest)


def _one_device(params):
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda _: device, nnx.to_pure_dict(params))
