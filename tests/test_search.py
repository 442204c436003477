import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import e5jax.search
from e5jax.errors import UserError
from e5jax.search import top_k


N = 6_000  # enough for a shortlist of k = 10 on each of the 8 devices


def by_sorting(queries, corpus, k):
    """What a stable sort of every score gives first."""
    scores = np.asarray(queries, np.float32) @ np.asarray(corpus, np.float32).T
    ids = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, ids, 1), ids


def whole_numbers(seed, *shape):
    """Small enough for every sum to be exact, so that ties are plenty and true ones."""
    return np.random.default_rng(seed).integers(-2, 3, shape).astype(np.float32)


def reals(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """Where a test does not ask for more: each device compiles its own program."""
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])


@pytest.mark.parametrize("k", [1, 7, 100, 3_000, N + 1])
def test_equals_a_stable_sort_of_all_scores_ties_included(k):
    queries, corpus = whole_numbers(0, 300, 24), whole_numbers(1, N, 24)
    scores, ids = top_k(queries, corpus, k)
    expected_scores, expected_ids = by_sorting(queries, corpus, k)
    assert scores.dtype == np.float32 and ids.dtype == np.int64
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_array_equal(scores, expected_scores)


@pytest.mark.parametrize("length", [1, 3, 64, 1_000, N - 1])
def test_any_length_of_corpus_is_searched_to_its_end(length):
    queries, corpus = whole_numbers(0, 5, 8), whole_numbers(1, length, 8)
    corpus[-1] = 3 * np.sign(queries[0])  # the best for the first query is the last of all
    scores, ids = top_k(queries, corpus, 10)
    np.testing.assert_array_equal(ids, by_sorting(queries, corpus, 10)[1])
    assert ids[0, 0] == length - 1 and ids.shape == scores.shape == (5, min(10, length))


def test_scores_are_float32_products_whatever_the_shortlist_was_drawn_up_in():
    queries, corpus = reals(0, 40, 96), reals(1, N, 96)
    scores, ids = top_k(queries, corpus, 10)
    true = np.float64(queries) @ np.float64(corpus).T
    np.testing.assert_allclose(scores, np.take_along_axis(true, ids, 1), rtol=2e-6)
    np.testing.assert_array_equal(ids, by_sorting(queries, corpus, 10)[1])


@pytest.mark.parametrize("scale", [1.0, 2.0**-80, 2.0**50])
def test_vectors_that_bfloat16_cannot_tell_apart_are_told_apart(scale):
    queries = np.ones((3, 4), np.float32)
    corpus = np.ones((N, 4), np.float32)
    corpus[:, 0] += np.random.default_rng(0).permutation(N) * np.float32(6e-7)  # at most 1.0036: in bfloat16 all are 1
    corpus *= np.float32(scale)
    np.testing.assert_array_equal(top_k(queries, corpus, 10)[1], by_sorting(queries, corpus, 10)[1])


def test_equal_vectors_come_with_equal_scores_and_the_lower_id_first():
    base, queries = reals(0, 700, 96), reals(1, 50, 96)
    scores, ids = top_k(queries, np.concatenate([base, base[::-1], base]), 9)
    scores, ids = scores.reshape(50, 3, 3), ids.reshape(50, 3, 3)
    assert (scores == scores[:, :, :1]).all() and (np.diff(ids) > 0).all()


def test_scores_that_only_bfloat16_tells_apart_stand_by_id():
    parts = np.random.default_rng(0).integers(200, 800, N).astype(np.float32)  # most are no bfloat16
    sums = np.where(np.arange(N) % 100 == 0, np.float32(2_000), np.float32(500))
    corpus = np.stack([parts, sums - parts], 1)
    scores, ids = top_k(np.ones((3, 2), np.float32), corpus, 10)
    assert (scores == 2_000).all() and (ids == np.arange(0, 1_000, 100)).all()


@pytest.mark.parametrize("component", [1.00390, 1.0117, -1.00391, 0.7])
def test_the_bound_on_rounding_covers_the_worst_of_it(component):
    dim = 64
    query = jnp.full((1, dim), component, jnp.float32)
    for other in (component, 1.0039, 1.9):
        vector = jnp.full((1, dim), other, jnp.float32)
        rough = e5jax.search._scores(query.astype(jnp.bfloat16), vector.astype(jnp.bfloat16))[0, 0]
        off = abs(float(rough) - dim * float(query[0, 0]) * float(vector[0, 0]))
        assert off <= jax.jit(e5jax.search._rounding)(query, e5jax.search._norm(vector)[0])[0]


def test_the_bound_on_rounding_is_tight_enough_to_prove_most_shortlists():
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
    queries, corpus = unit(reals(0, 20, 768)), unit(reals(1, 20_000, 768))
    best, _ = by_sorting(queries, corpus, 264)
    bound = e5jax.search._rounding(jnp.asarray(queries), jnp.float32(1))
    assert (best[:, 263] + bound < best[:, 99]).all()


def test_shards_and_memory_maps_and_jax_arrays_give_what_the_whole_array_gives(tmp_path):
    queries, corpus = whole_numbers(0, 30, 24), whole_numbers(1, N, 24)
    expected = by_sorting(queries, corpus, 10)
    np.save(tmp_path / "corpus.npy", corpus)
    mesh = Mesh(np.array(jax.devices()), ("shards",))
    for form in (
        [corpus[:2_500], corpus[2_500:2_503], corpus[2_503:]],
        (corpus[i : i + 1_000] for i in range(0, N, 1_000)),
        np.load(tmp_path / "corpus.npy", mmap_mode="r"),
        jnp.asarray(corpus),
        jax.device_put(corpus, NamedSharding(mesh, P("shards"))),
    ):
        for ours, theirs in zip(top_k(jnp.asarray(queries), form, 10), expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_every_device_searches_a_part_and_the_answer_is_that_of_one(monkeypatch):
    queries, corpus = reals(0, 30, 64), reals(1, N, 64)
    of_one = top_k(queries, corpus, 10)
    used = set()
    search = e5jax.search._search
    monkeypatch.setattr(e5jax.search, "_search", lambda q, c, k: used.update(c.devices()) or search(q, c, k))
    monkeypatch.setattr(jax, "local_devices", jax.devices)
    of_eight = top_k(queries, corpus, 10)
    assert used == set(jax.devices()) and len(used) == 8
    for one, eight in zip(of_one, of_eight, strict=True):
        np.testing.assert_array_equal(one, eight)


def test_tiles_bound_what_a_device_holds(monkeypatch):
    monkeypatch.setattr(e5jax.search, "TILE_VECTORS", 1_000)
    monkeypatch.setattr(e5jax.search, "TILE_COMPONENTS", 700 * 24)
    queries, corpus = whole_numbers(0, 30, 24), whole_numbers(1, N, 24)
    sizes = [len(tile) for _, tile in e5jax.search._tiles([corpus], 24, 1)]
    assert max(sizes) == 700 and sum(sizes) == N
    np.testing.assert_array_equal(top_k(queries, corpus, 10)[1], by_sorting(queries, corpus, 10)[1])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_vectors_are_multiplied_in_float32(dtype):
    queries, corpus = reals(0, 30, 64), jnp.asarray(reals(1, N, 64), dtype)
    scores, ids = top_k(queries, corpus, 10)
    expected_scores, expected_ids = by_sorting(queries, corpus, 10)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-5)


def test_no_row_of_scores_is_sorted():
    queries = jax.ShapeDtypeStruct((1, 16, 32), jnp.float32)
    corpus = jax.ShapeDtypeStruct((20_001, 32), jnp.float32)
    program = e5jax.search._search.lower(queries, corpus, 100).compile().as_text()
    assert len(re.findall(r'custom_call_target="TopK"', program)) == 5
    assert not re.findall(r"f32\[[^)]*\) sort\(", program)


def test_without_queries_or_corpus_the_answer_is_empty():
    assert [x.shape for x in top_k(np.zeros((0, 8), np.float32), reals(0, 9, 8), 5)] == [(0, 5), (0, 5)]
    assert [x.shape for x in top_k(reals(0, 9, 8), np.zeros((0, 8), np.float32), 5)] == [(9, 0), (9, 0)]
    assert [x.shape for x in top_k(reals(0, 9, 8), [], 5)] == [(9, 0), (9, 0)]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e20])
def test_a_vector_that_is_not_finite_is_refused_by_its_id(bad):
    corpus = reals(0, N, 8)
    corpus[4_321, 3] = bad
    with pytest.raises(UserError, match=r"corpus: vector 4321 holds NaN"):
        top_k(reals(1, 3, 8), [corpus[:4_000], corpus[4_000:]], 10)
    with pytest.raises(UserError, match=r"queries: vector 4321 holds NaN"):
        top_k(corpus, reals(1, 3, 8), 10)


@pytest.mark.parametrize(
    ("queries", "corpus", "k", "message"),
    [
        (reals(0, 2, 8), reals(0, 9, 7), 3, "shard 0: 7 components a vector, the queries have 8"),
        (reals(0, 2, 8), [reals(0, 9, 8), reals(0, 8)], 3, r"shard 1: \(8,\) is not the shape"),
        (reals(0, 8), reals(0, 9, 8), 3, r"queries: \(8,\) is not the shape"),
        ([[1.0, 2.0]], reals(0, 9, 2), 3, "queries: .* give an array"),
        (np.zeros((2, 8)), reals(0, 9, 8), 3, "queries: float64 is not searched"),
        (reals(0, 2, 8), np.zeros((9, 8), np.int8), 3, "shard 0: int8 is not searched"),
        (reals(0, 2, 8), reals(0, 9, 8), 0, "k is 0"),
    ],
)
def test_what_cannot_be_searched_is_refused_in_words(queries, corpus, k, message):
    with pytest.raises(UserError, match=message):
        top_k(queries, corpus, k)
