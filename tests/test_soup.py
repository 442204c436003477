"""A merged adapter changes a weight by the sum of what its parts change; only a lower rank loses something."""

import jax
import numpy as np
import pytest
from flax import nnx

from e5jax import lora, soup
from tests import tiny


LAYERS, D, O = 3, (4, 6), (5,)
RANKS, SCALES, WEIGHTS = (2, 3), (2.0, 0.5), (0.7, 0.3)


def adapter(rank, seed):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    one = lambda: {"adapter": {"a": draw(LAYERS, *D, rank), "b": draw(LAYERS, rank, *O)}}
    return {"layers": {"q": one(), "up": one()}}


def delta(tree, name, scale):
    a, b = tree["layers"][name]["adapter"]["a"], tree["layers"][name]["adapter"]["b"]
    return scale * np.einsum("lxyr,lro->lxyo", np.float64(a), b)


@pytest.fixture
def trees():
    return [adapter(rank, seed) for seed, rank in enumerate(RANKS)]


def deltas(trees, name):
    return [delta(tree, name, scale) for tree, scale in zip(trees, SCALES, strict=True)]


def test_linear_adds_up_exactly_and_ranks_add_up_too(trees):
    merged, rank, lost = soup.of_adapters(trees, SCALES, WEIGHTS, "linear", None)
    assert (rank, lost) == (5, 0.0)
    for name in ("q", "up"):
        one, other = deltas(trees, name)
        np.testing.assert_allclose(delta(merged, name, 1.0), 0.7 * one + 0.3 * other, rtol=1e-5, atol=1e-6)


def test_slerp_goes_along_the_arc_layer_by_layer(trees):
    merged, _, _ = soup.of_adapters(trees, SCALES, WEIGHTS, "slerp", None)
    for name in ("q", "up"):
        for layer, (one, other) in enumerate(zip(*deltas(trees, name), strict=True)):
            angle = np.arccos((one * other).sum() / np.linalg.norm(one) / np.linalg.norm(other))
            expected = (np.sin(0.7 * angle) * one + np.sin(0.3 * angle) * other) / np.sin(angle)
            np.testing.assert_allclose(delta(merged, name, 1.0)[layer], expected, rtol=1e-5, atol=1e-6)


def test_slerp_of_two_as_long_as_each_other_is_as_long():
    one, other = np.random.default_rng(0).normal(size=(2, 50))
    other *= np.linalg.norm(one) / np.linalg.norm(other)
    merged = soup.of_weights([{"w": one}, {"w": other}], (0.5, 0.5), "slerp")["w"]
    np.testing.assert_allclose(np.linalg.norm(merged), np.linalg.norm(one), rtol=1e-6)
    assert np.linalg.norm((one + other) / 2) < 0.9 * np.linalg.norm(one)


@pytest.mark.parametrize("pair", [(1.0, 1.0), (1.0, -1.0), (1.0, 0.0)], ids=["equal", "opposite", "zero"])
def test_slerp_of_parallel_ones_is_the_sum(pair):
    x = np.arange(1.0, 6.0)
    merged = soup.of_weights([{"w": factor * x} for factor in pair], (0.25, 0.75), "slerp")["w"]
    np.testing.assert_allclose(merged, (0.25 * pair[0] + 0.75 * pair[1]) * x, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rank", [1, 3])
def test_a_lower_rank_is_the_best_there_is_and_its_loss_is_told(trees, rank):
    merged, told, lost = soup.of_adapters(trees, SCALES, WEIGHTS, "linear", rank)
    assert told == rank == merged["layers"]["q"]["adapter"]["a"].shape[-1]
    squares = wholes = 0.0
    for name in ("q", "up"):
        one, other = deltas(trees, name)
        whole = (0.7 * one + 0.3 * other).reshape(LAYERS, -1, *O)
        left, values, right = np.linalg.svd(whole, full_matrices=False)
        best = (left[..., :rank] * values[:, None, :rank]) @ right[:, :rank]
        np.testing.assert_allclose(delta(merged, name, 1.0).reshape(whole.shape), best, rtol=1e-4, atol=1e-5)
        squares, wholes = squares + (values[:, rank:] ** 2).sum(), wholes + (values**2).sum()
    np.testing.assert_allclose(lost, np.sqrt(squares / wholes), rtol=1e-5)


def test_what_is_trained_beside_adapters_is_merged_as_it_is(trees):
    latents = [{"pooling": {"latents": np.full(3, value)}} for value in (1.0, 2.0)]
    merged, _, _ = soup.of_adapters(
        [tree | more for tree, more in zip(trees, latents, strict=True)], SCALES, WEIGHTS, "linear", None
    )
    np.testing.assert_allclose(merged["pooling"]["latents"], 1.3, rtol=1e-6)


def test_adapters_of_a_model_merge_as_its_weights_do():
    """Two adapted decoders: the merged adapter changes every projection by the mean of theirs."""
    one, other = tiny.adapted(tiny.decoder()), tiny.adapted(tiny.decoder())
    for projection in lora.projections(other.layers).values():
        projection.adapter.b[...] = projection.adapter.b[...] * -0.5 + 0.01
    trees = [nnx.to_pure_dict(nnx.split(model, nnx.LoRAParam, ...)[1]) for model in (one, other)]
    merged, rank, _ = soup.of_adapters(jax.device_get(trees), [2.0, 2.0], [0.5, 0.5], "linear", None)
    assert rank == 2 * tiny.RANK
    for name, projection in lora.projections(one.layers).items():
        theirs = lora.projections(other.layers)[name]
        expected = (projection.adapter.delta() + theirs.adapter.delta()) / 2
        found = merged["layers"][name]["adapter"]
        found = np.stack([np.tensordot(a, b, 1) for a, b in zip(found["a"], found["b"], strict=True)])
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
