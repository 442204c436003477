"""The learning rate's three corners, and what AdamW decays and clips."""

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from e5jax.optim import adamw, learning_rate
from tests import tiny


def test_the_rate_rises_to_its_peak_in_the_last_warmup_step_and_falls_to_above_zero_in_the_last():
    rates = [float(learning_rate(2.0, 4, 10)(count)) for count in range(10)]
    np.testing.assert_allclose(rates, [0.5, 1.0, 1.5, 2.0, 2.0, 10 / 6, 8 / 6, 1.0, 4 / 6, 2 / 6], rtol=1e-6)
    assert learning_rate(2.0, 4, 10)(10) == 0


@pytest.mark.parametrize(("warmup", "steps"), [(0, 5), (5, 5), (9, 5), (1, 1)])
def test_every_update_of_an_odd_schedule_has_a_rate_between_zero_and_the_peak(warmup, steps):
    rates = [float(learning_rate(2.0, warmup, steps)(count)) for count in range(steps)]
    assert all(0 < rate <= 2.0 for rate in rates)
    assert rates[0] == pytest.approx(2.0 / max(1, warmup))


@pytest.fixture(scope="module")
def params():
    return nnx.split(tiny.decoder(), nnx.Param, ...)[1]


def updates(params, gradients, **changes):
    options = dict(b1=0.9, b2=0.999, weight_decay=0.1, clip_norm=1.0) | changes
    optimizer = adamw(lambda count: 1.0, **options)
    update, _ = tiny.jit(optimizer.update)(gradients, optimizer.init(params), params)
    return nnx.to_pure_dict(update)


def test_all_weights_are_decayed_but_the_scales_of_norms(params):
    moved = updates(params, jax.tree.map(np.zeros_like, params))
    weights = nnx.to_pure_dict(params)
    names = {"attn_norm", "mlp_norm"}
    assert not np.any(moved["norm"]["scale"])
    assert not any(np.any(moved["layers"][name]["scale"]) for name in names)
    np.testing.assert_allclose(moved["embed"], -0.1 * weights["embed"], rtol=1e-6)
    others = set(moved["layers"]) - names
    assert others == {"q", "k", "v", "o", "gate", "up", "down"}
    for name in others:
        np.testing.assert_allclose(moved["layers"][name]["w"], -0.1 * weights["layers"][name]["w"], rtol=1e-6)


def test_adapters_are_decayed_both_halves():
    _, adapters, _ = nnx.split(tiny.adapted(tiny.decoder()), nnx.LoRAParam, ...)
    moved = updates(adapters, jax.tree.map(np.zeros_like, adapters))
    for a, b in zip(jax.tree.leaves(moved), jax.tree.leaves(adapters), strict=True):
        np.testing.assert_allclose(a, -0.1 * b, rtol=1e-6)


def test_a_long_gradient_is_cut_to_the_clip_norm_and_a_short_one_left_alone(params):
    ones = jax.tree.map(np.ones_like, params)
    norm = float(np.sqrt(sum(leaf.size for leaf in jax.tree.leaves(ones))))
    moments = []
    for clip_norm in (1.0, 2 * norm):
        optimizer = adamw(lambda count: 1.0, b1=0.9, b2=0.999, weight_decay=0.1, clip_norm=clip_norm)
        _, state = tiny.jit(optimizer.update)(ones, optimizer.init(params), params)
        (adam,) = [s for s in jax.tree.leaves(state, is_leaf=is_adam) if is_adam(s)]
        moments.append(jax.tree.leaves(adam.mu))
    for cut, left_alone in zip(*moments, strict=True):
        np.testing.assert_allclose(cut, 0.1 / norm, rtol=1e-4)
        np.testing.assert_allclose(left_alone, 0.1, rtol=1e-6)


def is_adam(node):
    return isinstance(node, optax.ScaleByAdamState)
