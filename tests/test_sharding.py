"""Everything lies where the table says, and no mesh changes what is computed or moves what should stay."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from e5jax.contrast import Contrast
from e5jax.errors import UserError
from e5jax.layers import NO_DROPOUT
from e5jax.optim import adamw
from e5jax.packing import BinShape
from e5jax.sharding import batch_shardings, constrain, make_mesh, over_shards, replicated, shard_count, shardings
from e5jax.step import TrainState, init_state, make_step
from tests import counting, tiny


# The mesh


@pytest.mark.parametrize(
    ("asked", "made"),
    [((-1, 1, 1), (8, 1, 1)), ((1, -1, 1), (1, 8, 1)), ((2, -1, 2), (2, 2, 2)), ((2, 4, 1), (2, 4, 1))],
)
def test_a_mesh_takes_every_device(asked, made):
    mesh = make_mesh(asked)
    assert mesh.axis_names == ("data", "fsdp", "tensor") and mesh.devices.shape == made
    assert shard_count(mesh) == made[0] * made[1]


@pytest.mark.parametrize("asked", [(3, -1, 1), (2, 2, 1), (16, -1, 1), (-1, -1, 2), (0, -1, 1), (-2, -4, 1), (8, 1, 0)])
def test_a_mesh_that_does_not_fit_the_devices_is_refused_in_words(asked):
    with pytest.raises(UserError, match="does not fit 8 devices"):
        make_mesh(asked)


# The layout


def split(model):
    return nnx.split(model, nnx.LoRAParam, ...)


def specs(tree, mesh):
    return jax.tree.map(lambda s: s.spec, nnx.to_pure_dict(shardings(tree, mesh)))


def test_weights_and_adapters_lie_as_the_table_says():
    mesh = make_mesh((1, 4, 2))
    _, adapters, frozen = split(tiny.adapted(tiny.decoder()))
    weights, adapters = specs(frozen, mesh), specs(adapters, mesh)
    assert weights["embed"] == P(("fsdp", "tensor"), None)
    assert weights["norm"]["scale"] == P(None)
    layers = weights["layers"]
    assert layers["q"]["w"] == layers["k"]["w"] == layers["v"]["w"] == P(None, "fsdp", "tensor", None)
    assert layers["o"]["w"] == P(None, "tensor", None, "fsdp")
    assert layers["gate"]["w"] == layers["up"]["w"] == P(None, "fsdp", "tensor")
    assert layers["down"]["w"] == P(None, "tensor", "fsdp")
    assert layers["attn_norm"]["scale"] == P(None, None)
    q, down = adapters["layers"]["q"]["adapter"], adapters["layers"]["down"]["adapter"]
    assert q == {"a": P(None, "fsdp", None), "b": P(None, None, "tensor", None)}
    assert down == {"a": P(None, "tensor", None), "b": P(None, None, "fsdp")}


def test_an_axis_that_the_mesh_does_not_divide_stays_whole():
    mesh = make_mesh((1, 2, 4))
    weights = specs(nnx.state(tiny.decoder()), mesh)
    assert weights["layers"]["q"]["w"] == P(None, "fsdp", None, None)  # 6 heads
    assert weights["layers"]["gate"]["w"] == P(None, "fsdp", "tensor")  # 40
    odd = dict(vocab_size=103, dim=23)
    weights = specs(nnx.state(tiny.decoder(**odd)), mesh)
    assert weights["embed"] == P(None, None)
    assert weights["layers"]["gate"]["w"] == P(None, None, "tensor")


def test_adam_moments_lie_as_their_weights_and_counters_everywhere():
    mesh = make_mesh((1, 4, 2))
    _, adapters, _ = split(tiny.adapted(tiny.decoder()))
    optimizer = adamw(lambda count: 1e-3, b1=0.9, b2=0.999, weight_decay=0.1, clip_norm=1.0)
    state, layout = init_state(jax.device_put(adapters, shardings(adapters, mesh)), optimizer, mesh)
    (adam,) = [s for s in jax.tree.leaves(state.opt_state, is_leaf=is_adam) if is_adam(s)]
    for moments in (adam.mu, adam.nu):
        for moment, weight in zip(jax.tree.leaves(moments), jax.tree.leaves(state.params), strict=True):
            assert moment.sharding == weight.sharding and moment.shape == weight.shape
    assert not all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(adam.mu))
    assert state.step.sharding == adam.count.sharding == replicated(mesh)
    assert [leaf.sharding for leaf in jax.tree.leaves(state)] == jax.tree.leaves(layout)


def is_adam(node):
    return isinstance(node, optax.ScaleByAdamState)


def test_without_a_mesh_everything_is_the_identity():
    x = jnp.ones((4, 3))
    assert constrain(x, "shards", None) is x
    np.testing.assert_array_equal(over_shards(lambda row: 2 * row)(x), 2 * x)


# The step

MESHES = [(8, 1, 1), (1, 8, 1), (2, 2, 2)]
TEXTS = tiny.texts([5, 9, 16, 3, 7, 8, 2, 6] + [13, 8, 1, 15, 9, 6, 7, 16, 11, 3, 8, 12])
QUERIES = 8


def prepare(shape: BinShape, mesh=None):
    """-> (step, its arguments): adapters on a frozen base; the optimizer's state is the gradient."""
    graphdef, adapters, frozen = split(tiny.adapted(tiny.decoder()))
    optimizer = optax.trace(decay=0.0)
    step = make_step(
        graphdef,
        optimizer,
        shape.rows,
        temperature=0.1,
        contrast=Contrast(),
        matryoshka=(),
        distill=None,
        dtype=jnp.float32,
        kept=0,
        remat=mesh is not None,
        dropout=NO_DROPOUT,
        seed=0,
    )
    step = functools.partial(step, None)
    batch = tiny.batch(TEXTS[:QUERIES], TEXTS[QUERIES:], shape)
    if mesh is None:
        state = TrainState(jnp.zeros((), jnp.int32), adapters, optimizer.init(adapters))
        return tiny.jit(step), (state, frozen, batch)
    adapters, frozen = jax.device_put((adapters, frozen), shardings((adapters, frozen), mesh))
    state, layout = init_state(adapters, optimizer, mesh)
    batch = jax.device_put(batch, batch_shardings(batch, mesh, lambda x: 1 if x.ndim == 3 else None))
    return tiny.jit(step, out_shardings=(layout, replicated(mesh))), (state, frozen, batch)


@dataclasses.dataclass
class Ran:
    shape: BinShape
    loss: float
    gradient: dict
    base: dict
    hlo: str


@pytest.fixture(scope="module")
def ran():
    """mesh -> what one step on it gave, and how it was compiled; None: one device, one chunk, nothing recomputed."""
    done = {}

    def run(sizes):
        if sizes not in done:
            if sizes is None:
                shape = BinShape(chunks=1, shards=1, rows=((16, 12), (8, 3)), slots=20)
                step, arguments = prepare(shape)
                compiled = step.lower(*arguments).compile()
                state, metrics = compiled(*arguments)
            else:
                mesh = make_mesh(sizes)
                with jax.set_mesh(mesh):
                    shape = BinShape(chunks=3, shards=shard_count(mesh), rows=((16, 1), (9, 1)), slots=7)
                    step, arguments = prepare(shape, mesh)
                    compiled = step.lower(*arguments).compile()
                    state, metrics = compiled(*arguments)
            done[sizes] = Ran(
                shape=shape,
                loss=float(metrics["loss"]),
                gradient=jax.tree.map(np.array, nnx.to_pure_dict(state.opt_state.trace)),
                base=nnx.to_pure_dict(arguments[1]),
                hlo=compiled.as_text(),
            )
        return done[sizes]

    return run


@pytest.mark.parametrize("sizes", MESHES)
def test_loss_and_gradient_on_a_mesh_are_those_of_one_device(sizes, ran):
    one, many = ran(None), ran(sizes)
    np.testing.assert_allclose(many.loss, one.loss, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), many.gradient, one.gradient)
    assert max(np.abs(g).max() for g in jax.tree.leaves(one.gradient)) > 0.01


def sizes_of(tree):
    """Elements of each array of the tree, and of one layer of it."""
    stacked = jax.tree.leaves(tree["layers"])
    return {math.prod(x.shape) for x in jax.tree.leaves(tree)} | {math.prod(x.shape[1:]) for x in stacked}


def adapters_of(gradient):
    """`sizes_of` it, and of the adapters that share an input: their A's lie side by side, those of two or three."""
    return sizes_of(gradient) | {n * tiny.CFG.dim * tiny.RANK for n in (2, 3)}


def matrices(base):
    """The base without its norms."""
    return {"embed": base["embed"], "layers": {k: v for k, v in base["layers"].items() if "norm" not in k}}


@pytest.mark.parametrize("sizes", MESHES)
def test_the_only_activations_gathered_are_the_embeddings_once(sizes, ran):
    run = ran(sizes)
    vectors = (run.shape.chunks, run.shape.shards, run.shape.slots, tiny.CFG.dim)
    gathers = [shape for name, shape in counting.collectives(run.hlo) if name == "all-gather"]
    assert gathers.count(vectors) == 1
    others = [shape for shape in gathers if shape != vectors]
    if sizes == (8, 1, 1):
        assert not others
    else:  # weights and adapters, a layer at a time
        tensor = sizes[2]
        weights = {n // t for n in sizes_of(matrices(run.base)) | adapters_of(run.gradient) for t in (1, tensor)}
        assert {math.prod(shape) for shape in others} <= weights
    assert not [shape for _, shape in counting.collectives(run.hlo) if set(shape) & {run.shape.tokens}] or sizes[2] > 1


@pytest.mark.parametrize("sizes", MESHES)
def test_every_device_multiplies_its_own_bin_and_its_own_queries_alone(sizes, ran):
    run = ran(sizes)
    products = [set(map(int, dims.split(","))) for dims in re.findall(r"= \w+\[([\d,]+)\]\S* dot\(", run.hlo)]
    assert [dims for dims in products if run.shape.tokens in dims]
    assert not [dims for dims in products if {run.shape.shards, QUERIES} & dims]  # no other axis is as long


def test_nothing_of_a_replicated_base_moves(ran):
    """What does: embeddings forward, their gradient backward, and the gradient of the adapters."""
    run = ran((8, 1, 1))
    moved = {math.prod(shape) for _, shape in counting.collectives(run.hlo)}
    assert not moved & sizes_of(matrices(run.base))
    vectors, dim = run.shape.chunks * run.shape.shards * run.shape.slots, tiny.CFG.dim
    assert moved <= adapters_of(run.gradient) | {1, vectors * dim, (len(TEXTS) - QUERIES) * dim}


def test_every_weight_of_a_split_base_is_gathered_whole(ran):
    run = ran((1, 8, 1))
    gathered = {math.prod(shape) for name, shape in counting.collectives(run.hlo) if name == "all-gather"}
    layers = matrices(run.base)["layers"]
    assert {math.prod(w.shape[1:]) for w in jax.tree.leaves(layers)} | {run.base["embed"].size} <= gathered
    names = {name for name, shape in counting.collectives(run.hlo) if math.prod(shape) in sizes_of(matrices(run.base))}
    assert names == {"all-gather"}  # weights are never summed: no gradient of their shape exists
