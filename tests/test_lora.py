"""An adapter changes nothing until it is trained, is all that is trained, and can be merged."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from e5jax import lora
from e5jax.decoder import MISTRAL_7B_V01, PROJECTIONS, Decoder
from e5jax.errors import UserError
from e5jax.packing import BinShape
from tests import tiny


SHAPE = BinShape(chunks=1, shards=1, rows=((16, 2), (8, 1)), slots=5)
TEXTS = tiny.texts((13, 3, 9, 8))


@pytest.fixture(scope="module")
def base():
    return tiny.decoder()


@pytest.fixture(scope="module")
def encode():
    bins, vector = tiny.pack(TEXTS, SHAPE)
    encode = tiny.jit(lambda model: tiny.encode(model, bins, SHAPE)[vector])
    return lambda model: np.array(encode(model))


def test_a_fresh_adapter_changes_no_bit(base, encode):
    np.testing.assert_array_equal(encode(tiny.adapted(base, fresh=True)), encode(base))


def test_merged_adapters_give_what_adapters_beside_the_weights_give(base, encode):
    adapted = tiny.adapted(base)
    vectors = encode(adapted)
    assert np.abs(vectors - encode(base)).max() > 1e-2
    merged = lora.merge(adapted)
    assert jax.tree.structure(merged) == jax.tree.structure(base)
    np.testing.assert_allclose(encode(merged), vectors, atol=1e-5, rtol=0)


def test_the_product_of_an_adapter_is_scale_times_x_a_b():
    model = tiny.adapted(tiny.decoder(layers=1), ("o",))
    o = jax.tree.map(lambda leaf: leaf[0], model.layers.o)  # the one layer
    x = jax.random.normal(jax.random.key(0), (4, 6, 10))
    a, b = np.array(o.adapter.a[...]).reshape(60, tiny.RANK), np.array(o.adapter.b[...])
    expected = 2.0 * np.array(x).reshape(4, 60) @ a @ b  # alpha / rank = 2
    np.testing.assert_allclose(o(x, x) - o.plain(x), expected, atol=1e-5)
    np.testing.assert_allclose(o.adapter.delta().reshape(60, 24), 2.0 * a @ b, atol=1e-6)


def test_only_adapters_have_gradients_and_each_has_one(base):
    graphdef, adapters, frozen = nnx.split(tiny.adapted(base), nnx.LoRAParam, ...)
    bins, vector = tiny.pack(TEXTS, SHAPE)

    def loss(adapters):
        vectors = tiny.encode(nnx.merge(graphdef, adapters, frozen), bins, SHAPE)[vector]
        return (vectors * np.arange(24)).sum()

    gradient = tiny.jit(jax.grad(loss))(adapters)
    leaves = jax.tree.leaves(gradient, is_leaf=lambda x: isinstance(x, nnx.Variable))
    assert len(leaves) == 2 * len(PROJECTIONS)
    for leaf in leaves:
        assert isinstance(leaf, nnx.LoRAParam) and leaf[...].dtype == jnp.float32
        assert np.abs(leaf[...]).max((1, 2)).min() > 0  # in every layer


@pytest.mark.parametrize("targets", [("q", "qkv"), ()])
def test_an_unknown_target_is_refused_with_the_names_to_choose_from(base, targets):
    with pytest.raises(UserError, match=r"lora\.targets .* name no projection; choose from ") as refused:
        lora.adapt(base, 4, 8, targets, jax.random.key(0))
    assert sorted(str(refused.value).split("choose from ")[1].split(", ")) == sorted(PROJECTIONS)


def test_a_projection_that_is_no_target_gets_no_adapter(base):
    adapted = tiny.adapted(base, ("v", "down"))
    with_one = {name for name, p in lora.projections(adapted.layers).items() if p.adapter is not None}
    assert with_one == {"v", "down"}


def test_a_is_drawn_as_peft_draws_it_anew_for_every_layer_and_target():
    adapted = tiny.adapted(tiny.decoder(), fresh=True)
    drawn = []
    for name, fan_in in dict(q=24, k=24, v=24, o=60, gate=24, up=24, down=40).items():
        adapter = lora.projections(adapted.layers)[name].adapter
        a, bound = np.array(adapter.a[...]), 1 / math.sqrt(fan_in)  # kaiming_uniform(a=√5)
        assert a.shape[0] == tiny.CFG.layers and a.size == tiny.CFG.layers * fan_in * tiny.RANK
        assert 0.95 * bound < np.abs(a).max() <= bound
        assert abs(a.std() / (bound / math.sqrt(3)) - 1) < 0.15
        assert not np.any(adapter.b[...])
        drawn += [layer.flatten()[:100] for layer in a]
    assert len(np.unique(drawn, axis=0)) == len(drawn)


def test_mistral_7b_has_its_7_110_660_096_parameters_and_rank_16_adds_41_943_040():
    def adapted():
        model = Decoder(MISTRAL_7B_V01, jnp.bfloat16, rngs=nnx.Rngs(0))
        return lora.adapt(model, 16, 32, PROJECTIONS, jax.random.key(0))

    _, adapters, base = jax.eval_shape(lambda: nnx.split(adapted(), nnx.LoRAParam, ...))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(adapters)) == 41_943_040
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(base)) == 7_110_660_096
    assert {leaf.dtype for leaf in jax.tree.leaves(adapters)} == {jnp.dtype("float32")}
    assert {leaf.dtype for leaf in jax.tree.leaves(base)} == {jnp.dtype("bfloat16")}
