"""One door for every kind of model: a workdir, one of its checkpoints, a Hugging Face directory, a hub name."""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh

from e5jax import architecture, checkpoint, hf, lora, peft_format, places, st_format
from e5jax import workdir as workdirs
from e5jax.architecture import Architecture, Model, abstract
from e5jax.errors import UserError
from e5jax.formats import Prompts, Tokenizer
from e5jax.pooling import Kind, Pooling
from e5jax.sharding import replicated, shardings


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpenedModel:
    """A model with its weights, and what is needed to use it."""

    model: Model
    tokenizer: Tokenizer
    dtype: jnp.dtype
    max_length: int | None
    """What it was trained with; None where its files do not say."""
    digest: str
    prompts: Prompts
    """What its files want in front of texts."""
    kept: dict
    """`HFConfig.kept` of the Hugging Face model at its root; {} where it was trained from random weights, or whole."""


def open_model(name: str, *, revision: str | None, mesh: Mesh | None, dtype: jnp.dtype | None) -> OpenedModel:
    """Load a model with its weights in `dtype` (None: as stored), adapters merged, laid out on the mesh.

    Raises UserError where `name` is no model or its files cannot be used.
    """
    path = checkpoint.brought(name)
    if is_run(path):
        try:
            return _open_run(path, mesh, dtype)
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: its config.json is not one that e5jax wrote: {error!r}") from error
    st = st_format.read(path if path.is_dir() or places.is_remote(name) else hf.resolve(name, revision))
    directory = st.transformer
    if (directory / "adapter_config.json").is_file():
        return _open_peft(st, mesh, dtype)
    files = hf.read_config(directory)
    dtype = jnp.dtype(dtype or files.dtype)
    cfg = files.architecture if st.pooling is None else dataclasses.replace(files.architecture, pooling=st.pooling)
    return OpenedModel(
        model=read_weights(directory, cfg, mesh, dtype),
        tokenizer=Tokenizer.load(directory),
        dtype=dtype,
        max_length=st.max_length,
        digest=folder_digest(st),
        prompts=st.prompts,
        kept=files.kept,
    )


def folder_digest(st: st_format.STFiles) -> str:
    """sha256 over the configuration and weights of a whole model, and its pooling where other files state it."""
    digest = hf.digest(st.transformer)
    return digest if st.pooling is None else hashlib.sha256(f"{digest} {st.pooling}".encode()).hexdigest()


def is_run(path: Path) -> bool:
    """Whether a path is the workdir of a run, or one of its checkpoints."""
    return workdirs.is_run(path) or (path.parent.name == "checkpoints" and workdirs.is_run(path.parent.parent))


def read_weights(directory: Path, cfg: Architecture, mesh: Mesh | None, dtype) -> Model:
    """A model with the weights of a Hugging Face directory."""
    graphdef, state = abstract(cfg, dtype)
    layout = None if mesh is None else nnx.to_pure_dict(shardings(state, mesh))
    weights = hf.load(directory, cfg, nnx.to_pure_dict(state), layout, dtype)
    nnx.replace_by_pure_dict(state, weights)
    return nnx.merge(graphdef, state)


def rearranged(
    cfg: Architecture, pooling: Kind | None, causal: bool | None, keep_layers: Sequence[int] | None
) -> Architecture:
    """The shape with what is not None. UserError for what the model cannot be."""
    changes = {} if pooling is None else {"pooling": pooling}
    if causal is not None:
        if not hasattr(cfg, "causal"):
            raise UserError(f"model.causal: a {cfg.family} has no such choice, its tokens see both sides")
        changes["causal"] = causal
    if keep_layers is not None:
        if not keep_layers or not all(0 <= layer < cfg.layers for layer in keep_layers):
            raise UserError(f"model.keep_layers {list(keep_layers)}: the model has the layers 0 to {cfg.layers - 1}")
        changes["layers"] = len(keep_layers)
    return dataclasses.replace(cfg, **changes)


def changed(model: Model, cfg: Architecture, keep_layers: Sequence[int] | None, mesh: Mesh | None) -> Model:
    """The same weights under another pooling or mask, of some of the layers; latents that it lacks are new."""
    graphdef, state = abstract(cfg, model.embed.dtype)
    kept = nnx.to_pure_dict(nnx.state(model))
    if keep_layers is not None:
        kept["layers"] = jax.tree.map(lambda x: x[jnp.array(keep_layers)], kept["layers"])
    if cfg.pooling != model.cfg.pooling:
        kept.pop("pooling", None)
        if fresh := nnx.to_pure_dict(nnx.state(Pooling(cfg.pooling, cfg.dim, rngs=nnx.Rngs(0)))):
            kept["pooling"] = jax.device_put(fresh, None if mesh is None else replicated(mesh))
    nnx.replace_by_pure_dict(state, kept)
    return nnx.merge(graphdef, state)


def _open_peft(st, mesh, dtype):
    """An adapter in PEFT's format, merged into the base that lies in it, or else the one that it names."""
    directory = st.transformer
    where = directory / "adapter_config.json"
    if any(directory.glob("model*.safetensors")):
        raise UserError(f"{directory}: a whole model and an adapter in one folder; move one of them elsewhere")
    config = peft_format.read_adapter_config(directory)
    own = directory / peft_format.OWN_BASE
    name = str(own) if own.is_dir() else config.base  # its name is a path that ends to hold when the folder is moved
    if name is None:
        raise UserError(f"{where}: base_model_name_or_path names no model")
    try:
        base = open_model(name, revision=None if own.is_dir() else config.revision, mesh=mesh, dtype=dtype)
    except UserError as error:
        raise UserError(f"{where}: the base cannot be opened: {error}") from error
    if st.pooling is not None:
        base = dataclasses.replace(
            base, model=changed(base.model, dataclasses.replace(base.model.cfg, pooling=st.pooling), None, mesh)
        )
    has_tokenizer = (directory / "tokenizer.json").is_file()
    return dataclasses.replace(
        base,
        model=_merged(peft_format.load_adapter(directory, base.model)),
        tokenizer=Tokenizer.load(directory) if has_tokenizer else base.tokenizer,
        max_length=st.max_length or base.max_length,
        prompts=base.prompts if st.prompts == Prompts(query=None) else st.prompts,
        digest=hashlib.sha256(f"{peft_format.digest(directory)} {base.digest} {st.pooling}".encode()).hexdigest(),
    )


def _merged(model: Model) -> Model:
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
    cfg = architecture.from_json(config["run"]["architecture"])
    dtype = jnp.dtype(dtype or config["model"]["dtype"])
    kept = {}
    if config["lora"] is None:
        model = _with_params(lambda: architecture.build(cfg, jnp.float32, rngs=nnx.Rngs(0)), step_dir, mesh, nnx.Param)
        model = jax.tree.map(lambda w: w.astype(dtype), model)
    else:
        base, kept = open_base(workdir, config, mesh, dtype)
        graphdef, adapters, _ = nnx.split(read_adapters(step_dir, config, mesh), nnx.LoRAParam, ...)
        model = _merged(nnx.merge(graphdef, adapters, nnx.split(base, nnx.LoRAParam, ...)[2]))
    return OpenedModel(
        model=model,
        tokenizer=Tokenizer.load(workdir / "tokenizer"),
        dtype=dtype,
        max_length=config["data"]["max_length"],
        digest=checkpoint.digest(step_dir),
        prompts=stored_prompts(config),
        kept=kept,
    )


def stored_prompts(config: dict) -> Prompts:
    """What a run puts in front of texts, from its config.json."""
    return Prompts(query=config["data"]["query_prompt"] or None, passage=config["data"]["passage_prompt"])


def open_base(workdir: Path, config: dict, mesh: Mesh | None, dtype: jnp.dtype) -> tuple[Model, dict]:
    """The frozen model that the adapters of a run belong to -> (with weights in `dtype`, its `HFConfig.kept`).

    `config` is the run's config.json. Raises UserError where the base is not the one it was.
    """
    cfg = architecture.from_json(config["run"]["architecture"])
    if (workdir / "base").is_dir():
        base = read_weights(workdir / "base", dataclasses.replace(cfg, pooling="last"), mesh, dtype)
        return changed(base, cfg, None, mesh), {}
    source = config["model"]
    opened = open_model(source["base"], revision=source["revision"], mesh=mesh, dtype=dtype)
    if opened.digest != config["run"]["base"]:
        raise UserError(f"{workdir} was trained on {source['base']} as it was then; those files have changed since")
    return changed(opened.model, cfg, source["keep_layers"], mesh), opened.kept


def read_adapters(step_dir: Path, config: dict, mesh: Mesh | None) -> Model:
    """The model of a run's config.json with the trained adapters (f32) of one step; all else is shapes."""

    def with_adapters():
        cfg = architecture.from_json(config["run"]["architecture"])
        model = architecture.build(cfg, jnp.float32, rngs=nnx.Rngs(0))
        settings = config["lora"]
        return lora.adapt(model, settings["rank"], settings["alpha"], settings["targets"], jax.random.key(0))

    return _with_params(with_adapters, step_dir, mesh, nnx.LoRAParam)


def _with_params(make, step_dir, mesh, kind):
    """The module that `make` builds, its parameters of `kind` read from a checkpoint, the others abstract."""
    graphdef, params, rest = jax.eval_shape(lambda: nnx.split(make(), kind, ...))
    placed = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        nnx.to_pure_dict(params),
        nnx.to_pure_dict(shardings(params, mesh)) if mesh is not None else _one_device(params),
    )
    read = checkpoint.read_params(step_dir, placed)
    for path, leaf in flatten_dict(read, sep=".").items():
        if not bool(jnp.isfinite(leaf).all()):
            raise UserError(f"{step_dir}: {path} holds NaN or infinity: take an earlier checkpoint")
    nnx.replace_by_pure_dict(params, read)
    return nnx.merge(graphdef, params, rest)


def _one_device(params):
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda _: device, nnx.to_pure_dict(params))
