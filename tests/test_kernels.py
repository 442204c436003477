"""The kernels of accelerators compute what attention.py computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from e5jax import attention, kernels
from e5jax.attention import attend
from e5jax.sharding import make_mesh, over_shards
from tests import tiny


ROWS, N, K, H = ((128, 2), (256, 1)), 4, 2, 128


def inputs(dtype=jnp.float32):
    T = sum(width * count for width, count in ROWS)
    rng = np.random.default_rng(0)
    q, k, v = (jnp.array(rng.standard_normal((T, heads, H)), dtype) for heads in (N, K, K))
    # Texts that end inside a row, at its end, and padding.
    texts = np.repeat(np.arange(1, 8), [100, 28, 60, 50, 18, 200, 56])
    return q, k, v, jnp.array(np.where(texts == 5, 0, texts), jnp.int32)


@pytest.fixture
def on_a_tpu(monkeypatch):
    """attend() takes the TPU's kernel, interpreted."""
    splash = kernels.splash
    monkeypatch.setattr(attention, "backend", lambda: "tpu")
    calls = []
    monkeypatch.setattr(
        kernels, "splash", lambda *a, interpret: (calls.append(a[0].shape), splash(*a, interpret=True))[1]
    )
    return calls


def value_and_slopes(causal, window):
    def total(q, k, v, segments):
        out = attend(q, k, v, segments, ROWS, None, causal, window)
        weights = jnp.cos(jnp.arange(out.size)).reshape(out.shape) * (segments > 0)[:, None, None]
        return jnp.sum(out * weights), out

    return tiny.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))


@pytest.mark.parametrize(("causal", "window"), [(True, None), (True, 40), (False, 17)])
def test_splash_attention_and_its_gradients_are_those_of_plain_attention(causal, window, on_a_tpu):
    (_, out), slopes = value_and_slopes(causal, window)(*inputs())
    assert on_a_tpu == [(2, 128, N, H), (1, 256, N, H)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "backend", lambda: "cpu")
        (_, expected), expected_slopes = value_and_slopes(causal, window)(*inputs())
    seen = np.asarray(inputs()[3]) > 0
    np.testing.assert_allclose(out[seen], expected[seen], atol=2e-5)
    for slope, other in zip(slopes, expected_slopes, strict=True):
        np.testing.assert_allclose(slope, other, atol=2e-4)


@pytest.mark.parametrize(("width", "head_dim", "fits"), [(512, 128, True), (64, 128, False), (512, 64, False)])
def test_rows_and_heads_that_are_no_multiples_of_the_lanes_go_the_plain_way(width, head_dim, fits):
    assert kernels.splash_fits(width, head_dim) == fits


@pytest.mark.parametrize("shape", [(2, 2, 2)])
def test_on_a_mesh_the_kernel_is_split_over_shards_and_heads(shape, on_a_tpu):
    mesh = make_mesh(shape)
    shards = shape[0] * shape[1]
    q, k, v, segments = (jnp.stack([x] * shards) for x in inputs())
    run = over_shards(lambda q, k, v, segments: attend(q, k, v, segments, ROWS, None, True, None))
    with jax.set_mesh(mesh):
        out = jax.jit(run)(q, k, v, segments)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "backend", lambda: "cpu")
        expected = jax.jit(run)(q, k, v, segments)
    seen = np.asarray(segments) > 0
    np.testing.assert_allclose(np.asarray(out)[seen], np.asarray(expected)[seen], atol=2e-5)
