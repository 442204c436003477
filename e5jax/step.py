"""The training step: a pure function of (state, frozen weights, batch), and the arrays it starts from."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from e5jax import architecture, checkpoint, lora, loss, objectives, workdir
from e5jax.architecture import Architecture, Model
from e5jax.attention import Rows
from e5jax.batch import Batch
from e5jax.command import to_json
from e5jax.config import TrainConfig
from e5jax.contrast import Contrast
from e5jax.errors import UserError
from e5jax.layers import NO_DROPOUT, Dropout
from e5jax.objectives import Distill
from e5jax.sharding import constrain, shardings


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What a step changes."""

    step: jax.Array
    params: nnx.State
    opt_state: optax.OptState


def make_step(
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    rows: Rows,
    *,
    temperature: float,
    contrast: Contrast,
    matryoshka: Sequence[int],
    distill: Distill | None,
    dtype: jnp.dtype,
    kept: int,
    remat: bool,
    dropout: Dropout,
    seed: int,
) -> Callable:
    """-> step(teacher, state, frozen, batch) -> (state, metrics). Gradients exist for `state.params` alone.

    A step whose loss or gradient is not finite changes nothing but the count of steps, as optax's `apply_if_finite`.
    `kept`, `remat`: see `loss.encode` and `layers.scan`. `teacher`: the weights of a live teacher; None without one.
    """

    def loss_fn(params, frozen, teacher, batch: Batch, step):
        encode = partial(loss.encode, bins=batch.bins, rows=rows, dtype=dtype)
        vectors = encode(
            nnx.merge(graphdef, params, frozen),
            kept=kept,
            remat=remat,
            dropout=dropout,
            dropout_key=jax.random.fold_in(jax.random.key(seed), step),
        )
        q_QD, p_PD = constrain(vectors[batch.query_Q], "shards", None), vectors[batch.passage_P]
        taught = batch.teacher_QE, batch.teacher_PE
        if teacher is not None:
            model = nnx.merge(distill.graphdef, teacher)
            vectors = encode(model, kept=0, remat=False, dropout=NO_DROPOUT, dropout_key=None)
            taught = vectors[batch.query_Q], vectors[batch.passage_P]
        return objectives.total(q_QD, p_PD, *taught, batch, temperature, contrast, matryoshka, distill)

    def step(teacher: nnx.State | None, state: TrainState, frozen: nnx.State, batch: Batch):
        value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
        (loss_, metrics), grads = value_and_grad(state.params, frozen, teacher, batch, state.step)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        updated = optax.apply_updates(state.params, updates), opt_state
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(loss_) & jnp.isfinite(norm)
        # Counts go on: the learning rate is that of the step, whatever became of the steps before.
        keep = lambda new, old: jnp.where(finite, new, old) if jnp.issubdtype(new.dtype, jnp.floating) else new
        params, opt_state = jax.tree.map(keep, updated, (state.params, state.opt_state))
        return TrainState(state.step + 1, params, opt_state), {"loss": loss_, **metrics, "grad_norm": norm}

    return step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trainable:
    """A model taken apart: what is trained, what is frozen, and how they go together."""

    graphdef: nnx.GraphDef
    params: nnx.State
    frozen: nnx.State


def build(config: TrainConfig, cfg: Architecture, key: jax.Array):
    """(graphdef, trained, frozen) of a model with random weights and fresh adapters."""
    model_key, adapter_key = jax.random.split(key)
    dtype = jnp.dtype(config.model.dtype if config.lora else "float32")
    model = architecture.build(cfg, dtype, rngs=nnx.Rngs(model_key))
    if config.lora is None:
        return nnx.split(model, nnx.Param, ...)
    lora.adapt(model, config.lora.rank, config.lora.alpha, config.lora.targets, adapter_key)
    return nnx.split(model, nnx.LoRAParam, ...)


def place_model(config: TrainConfig, cfg: Architecture, base: Model | None, mesh: Mesh) -> Trainable:
    """Every array on its devices: random weights made there, those of `base` as they are."""
    key = jax.random.key(config.seed)
    make = partial(build, config, cfg)
    graphdef, params, frozen = jax.eval_shape(make, key)
    if base is None:
        layout = shardings((params, frozen), mesh)
        params, frozen = jax.jit(lambda k: make(k)[1:], out_shardings=layout)(key)
    elif config.lora is None:
        params = nnx.split(base, nnx.Param, ...)[1]
    else:  # the random base of `make` is never computed: nothing asks for it
        params = jax.jit(lambda k: make(k)[1], out_shardings=shardings(params, mesh))(key)
        _, latents, frozen = nnx.split(base, nnx.LoRAParam, ...)
        nnx.update(params, jax.tree.map(lambda x: x.astype(jnp.float32), latents))  # its own, perhaps trained
    return Trainable(graphdef=graphdef, params=params, frozen=frozen)


def start_from(run: str, config: TrainConfig, cfg: Architecture, facts: dict, params: nnx.State) -> nnx.State:
    """The parameters of another run's newest step. UserError where that run has another model under them."""
    other, step_dir = checkpoint.find_step(checkpoint.brought(run))
    stored = workdir.read_config(other)
    wanted = {
        "its architecture": (stored["run"]["architecture"], dataclasses.asdict(cfg)),
        "its tokenizer": (stored["run"]["tokenizer"], facts["tokenizer"]),
        "its base": (stored["run"]["base"], facts["base"]),
        "lora": (stored["lora"], to_json(config)["lora"]),
    }
    if config.lora is not None:  # adapters of some layers are none of others'
        kept = lambda model: model.get("keep_layers")
        wanted["model.keep_layers"] = (kept(stored["model"]), kept(to_json(config)["model"]))
    if facts["base"] is None and config.lora is not None:  # a random base is made from the seed
        wanted["seed"] = (stored["seed"], config.seed)
    if different := [name for name, (theirs, mine) in wanted.items() if theirs != mine]:
        raise UserError(f"init_from {other}: {', '.join(different)} differs from this run's")
    values = checkpoint.read_params(step_dir, checkpoint.abstract(nnx.to_pure_dict(params)))
    nnx.replace_by_pure_dict(params, values)
    return params


def init_state(params: nnx.State, optimizer, mesh: Mesh) -> tuple[TrainState, TrainState]:
    """A fresh state around the parameters (whose buffers it takes over), and its layout."""

    def fresh(params):
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))

    layout = shardings(jax.eval_shape(fresh, params), mesh)
    # Without out_shardings the Adam moments would be replicated, and the step compiled twice.
    return jax.jit(fresh, out_shardings=layout, donate_argnums=0)(params), layout
