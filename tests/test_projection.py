"""The product with its own backward rule: right, in one dtype, and without a gradient nobody asked for."""

import collections
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from e5jax.contrast import Contrast
from e5jax.layers import NO_DROPOUT
from e5jax.packing import BinShape
from e5jax.projection import dot
from e5jax.step import TrainState, make_step
from tests import tiny


EQUATIONS = {
    "TD,DNH->TNH": ((7, 24), (24, 6, 10)),
    "TNH,NHD->TD": ((7, 6, 10), (6, 10, 24)),
    "TD,DF->TF": ((7, 24), (24, 40)),
    "Tr,rNH->TNH": ((7, 5), (5, 6, 10)),
}


def operands(eq, dtype):
    (x, w), out = EQUATIONS[eq], jnp.einsum(eq, *map(jnp.zeros, EQUATIONS[eq])).shape
    keys = jax.random.split(jax.random.key(0), 3)
    return [jax.random.normal(key, shape).astype(dtype) for key, shape in zip(keys, (x, w, out), strict=True)]


def product_of(eq):
    return lambda x, w: dot(eq, (None,) * w.ndim, x, w)


def value_and_gradients(product, x, w, g):
    value, back = jax.vjp(product, x, w)
    return value, *back(g)


@pytest.mark.parametrize("eq", EQUATIONS)
def test_value_and_gradients_in_f32_are_those_of_einsum(eq):
    arguments = operands(eq, jnp.float32)
    run = tiny.jit(value_and_gradients, static_argnums=0)
    ours = run(product_of(eq), *arguments)
    expected = run(lambda x, w: jnp.einsum(eq, x, w), *arguments)
    for a, b in zip(ours, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("eq", EQUATIONS)
def test_every_product_in_bf16_is_bf16_by_bf16_summed_in_f32_and_near_the_f32_one(eq):
    arguments = operands(eq, jnp.bfloat16)
    ours = lambda x, w, g: value_and_gradients(product_of(eq), x, w, g)
    products = tiny.dots(jax.make_jaxpr(ours)(*arguments).jaxpr)
    assert len(products) == 3
    for product in products:
        assert {v.aval.dtype for v in product.invars} == {jnp.dtype("bfloat16")}
        assert product.outvars[0].aval.dtype == jnp.float32
    exact = value_and_gradients(lambda x, w: jnp.einsum(eq, x, w), *(a.astype(jnp.float32) for a in arguments))
    for a, b in zip(tiny.jit(ours)(*arguments), exact, strict=True):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_allclose(a.astype(np.float32), b, rtol=2**-8, atol=1e-6)  # one rounding, at the end


def test_only_the_gradients_asked_for_are_computed():
    x, w, g = operands("TD,DF->TF", jnp.float32)
    product = lambda x, w: (product_of("TD,DF->TF")(x, w) * g).sum()
    shapes = lambda wanted: [
        d.outvars[0].aval.shape for d in tiny.dots(jax.make_jaxpr(jax.grad(product, wanted))(x, w).jaxpr)
    ]
    assert shapes(0) == [(7, 40), (7, 24)]
    assert shapes(1) == [(7, 40), (24, 40)]


def test_a_weight_used_under_remat_scan_and_vmap_has_its_gradient():
    x, w, _ = operands("TD,DF->TF", jnp.float32)
    xs, ws = jnp.stack([x, -x, 2 * x]), jnp.stack([w[:, :24], w[:, 8:32]])

    def total(product):
        layer = jax.checkpoint(lambda x, w: (jnp.tanh(product(x, w)), None))
        return lambda xs, ws: jnp.sum(jax.vmap(lambda x: jax.lax.scan(layer, x, ws)[0])(xs) ** 2)

    ours = jax.grad(total(product_of("TD,DF->TF")), (0, 1))(xs, ws)
    expected = jax.grad(total(lambda x, w: x @ w), (0, 1))(xs, ws)
    for a, b in zip(ours, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


# The training step

# Three shards, so that the gradient of grouped adapters, [shards, 24, 2 x 5], is not of k's shape, [24, 2, 10].
SHAPE = BinShape(chunks=2, shards=3, rows=((16, 1), (9, 3)), slots=5)
TEXTS = tiny.texts((13, 3, 9, 8, 16, 5, 7, 6))


def make(trained, remat):
    """-> (step in bf16, its arguments)"""
    graphdef, params, frozen = nnx.split(tiny.adapted(tiny.decoder(dtype=jnp.bfloat16)), trained, ...)
    optimizer = optax.sgd(1.0)
    options = dict(
        temperature=0.1,
        contrast=Contrast(),
        matryoshka=(),
        distill=None,
        kept=0,
        remat=remat,
        dropout=NO_DROPOUT,
        seed=0,
    )
    step = make_step(graphdef, optimizer, SHAPE.rows, dtype=jnp.bfloat16, **options)
    state = TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))
    return functools.partial(step, None), (state, frozen, tiny.batch(TEXTS[:4], TEXTS[4:], SHAPE))


@functools.cache
def step_jaxpr(trained):
    step, arguments = make(trained, remat=True)
    return jax.make_jaxpr(step)(*arguments).jaxpr


@functools.cache
def weights():
    """The base's matrices, layers stacked."""
    found = [w for w in jax.tree.leaves(nnx.state(tiny.decoder())) if w.ndim > 2]
    assert len(found) == 7
    return found


def of_its_shape(jaxpr, weight):
    """Products whose result has all axes of one layer's weight, in any order, perhaps others in front.

    Heads and their size may be one axis, behind that of the shards.
    """
    wanted = collections.Counter(weight.shape[1:])
    first, *middle, last = weight.shape[1:]
    flat = {(math.prod((first, *middle)), last), (first, math.prod((*middle, last)))}
    flat |= {shape[::-1] for shape in flat}
    results = [(d, d.outvars[0].aval.shape) for d in tiny.dots(jaxpr)]
    return [
        d for d, shape in results if wanted <= collections.Counter(shape) or (len(shape) <= 3 and shape[-2:] in flat)
    ]


def test_no_product_of_the_step_has_the_shape_of_a_frozen_weight():
    jaxpr = step_jaxpr(nnx.LoRAParam)
    assert len(tiny.dots(jaxpr)) > 40
    assert not [d for weight in weights() for d in of_its_shape(jaxpr, weight)]


def test_the_step_that_trains_every_weight_has_a_product_of_each_ones_shape():
    assert all(of_its_shape(step_jaxpr(nnx.Param), weight) for weight in weights())


def test_no_product_of_a_step_in_bf16_mixes_dtypes_but_in_attentions_backward():
    mixed = [d for d in tiny.dots(step_jaxpr(nnx.LoRAParam)) if len({v.aval.dtype for v in d.invars}) > 1]
    of_attention = lambda d: max(v.aval.ndim for v in d.invars) >= 5  # rows, positions, heads of a group, …
    assert not [d for d in mixed if not of_attention(d)]


def test_a_step_in_bf16_runs_on_cpu():
    step, arguments = make(nnx.LoRAParam, remat=False)
    state, metrics = tiny.jit(step)(*arguments)
    assert np.isfinite(metrics["loss"])
    moved = jax.tree.map(lambda a, b: np.any(a != b), state.params, arguments[0].params)
    assert jax.tree.all(moved)
