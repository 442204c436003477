"""Packing, chunks and dropout change nothing that they should not."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from e5jax import layers
from e5jax.layers import Dropout
from e5jax.packing import BinShape, place
from e5jax.pooling import unit
from tests import tiny


ROWS = ((16, 2), (8, 3))
LENGTHS = (13, 3, 6, 1, 7, 2, 16, 5, 8, 8, 4, 11)


def test_the_gradient_is_finite_and_zero_at_a_zero_vector():
    x = np.zeros((2, 24), np.float32)
    x[1] = 1
    slope = jax.grad(lambda x: (unit(x) * np.arange(24)).sum())(x)
    assert np.isfinite(slope).all() and not slope[0].any() and slope[1].any()


# Packing


@pytest.fixture(scope="module")
def model():
    return tiny.adapted(tiny.decoder())


@pytest.fixture(scope="module")
def alone(model):
    """The vector of each text of `LENGTHS`, one text in one row at a time, without encode()."""
    return np.array(tiny.jit(one_at_a_time)(model, padded(tiny.texts(LENGTHS))))


def padded(texts, width=16):
    """-> (tokens, lengths)"""
    tokens = np.array([np.pad(text, (0, width - len(text))) for text in texts])
    return tokens, np.array([len(text) for text in texts])


def one_at_a_time(model, texts, rate=0.0, key=None):
    def one(args):
        tokens, length, number = args
        at = jnp.arange(len(tokens))
        keys = None if key is None else jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(key, number), i))(at)
        noise = dict(dropout=Dropout(adapters=rate, hidden=0.0), dropout_keys_T=keys)
        options = dict(read_N=None, dtype=jnp.float32, remat=False, **noise)
        states = model(tokens, at, (at < length).astype(int), ((len(tokens), 1),), **options)
        return unit(states[length - 1])

    tokens, lengths = texts
    return jax.vmap(one)((tokens, lengths, jnp.arange(len(tokens))))


@functools.cache
def encoder(shape, rate, key):
    options = dict(dropout=Dropout(adapters=rate, hidden=0.0), dropout_key=None if key is None else jax.random.key(key))
    return tiny.jit(lambda model, bins: tiny.encode(model, bins, shape, **options))


def encode_texts(model, shape, placement=None, rate=0.0, key=None):
    bins, vector = tiny.pack(tiny.texts(LENGTHS), shape, placement)
    return np.array(encoder(shape, rate, key)(model, bins)), vector


def shuffled(placement, shape, seed):
    """The same rows in other bins, the texts of a bin in other slots."""
    rng = np.random.default_rng(seed)
    bins = rng.permutation(placement.chunks_used * shape.shards)
    slots = rng.permutation(shape.slots)
    return dataclasses.replace(placement, bin=bins[placement.bin], slot=slots[placement.slot])


def test_packed_texts_have_the_vectors_that_each_has_alone(model, alone):
    shape = BinShape(chunks=3, shards=2, rows=ROWS, slots=9)
    vectors, vector = encode_texts(model, shape)
    placement = place(np.array(LENGTHS), shape)
    assert placement.chunks_used == 1 and len(np.unique(placement.bin)) == 2
    np.testing.assert_allclose(vectors[vector], alone, atol=1e-5, rtol=0)
    np.testing.assert_allclose(np.linalg.norm(vectors[vector], axis=1), 1, atol=1e-6)


def test_spare_chunks_are_computed_neither_forward_nor_backward(model):
    shape = BinShape(chunks=3, shards=2, rows=ROWS, slots=9)
    vectors, _ = encode_texts(model, shape)
    used, *spare = np.split(vectors, 3)
    assert np.abs(used).sum() > 0
    assert not np.any(spare)  # an encoded chunk of padding would give unit vectors
    graphdef, adapters, frozen = nnx.split(model, nnx.LoRAParam, ...)
    bins, _ = tiny.pack(tiny.texts(LENGTHS), shape)
    total = lambda adapters: tiny.encode(nnx.merge(graphdef, adapters, frozen), bins, shape).sum()
    equations = tiny.equations(jax.make_jaxpr(jax.grad(total))(adapters).jaxpr)
    # Branches, not selects over two computed values: one in each direction.
    assert [equation.primitive.name for equation in equations].count("cond") == 2


def test_a_vector_does_not_depend_on_bin_slot_or_shard_even_with_dropout(model, alone):
    lengths, found = np.array(LENGTHS), []
    for chunks, shards, rows in [(2, 2, ((16, 2), (8, 3))), (1, 3, ((24, 2), (8, 2)))]:
        shape = BinShape(chunks=chunks, shards=shards, rows=rows, slots=12)
        for placement in (None, shuffled(place(lengths, shape), shape, seed=chunks)):
            vectors, vector = encode_texts(model, shape, placement, rate=0.5, key=7)
            found.append(vectors[vector])
    for vectors in found[1:]:
        np.testing.assert_allclose(vectors, found[0], atol=1e-5, rtol=0)
    assert np.abs(found[0] - alone).max() > 1e-2


# Dropout


def test_dropout_at_rate_zero_is_no_dropout_bit_for_bit(model):
    shape = BinShape(chunks=1, shards=2, rows=ROWS, slots=9)
    none, _ = encode_texts(model, shape)
    zero, _ = encode_texts(model, shape, rate=0.0, key=0)
    np.testing.assert_array_equal(none, zero)


def test_dropout_keeps_the_mean():
    keys = jax.random.split(jax.random.key(0), 4000)
    x = np.array(layers.drop_tokens(jnp.ones((4000, 24)), 0.1, keys))
    values, counts = np.unique(x, return_counts=True)
    np.testing.assert_allclose(values, [0, 1 / 0.9], rtol=1e-6)
    sigma = np.sqrt(0.1 * 0.9 / x.size)
    assert abs(counts[0] / x.size - 0.1) < 5 * sigma
    assert abs(x.mean() - 1) < 5 * sigma / 0.9


def test_masks_differ_by_token_layer_input_and_step(model, monkeypatch):
    masks, dropout = [], layers.drop_tokens

    def spy(x, rate, keys_T):
        kept = dropout(jnp.ones_like(x), rate, keys_T).reshape(len(x), -1)[:, :24] > 0
        jax.debug.callback(lambda mask: masks.append(np.array(mask)), kept, ordered=True)
        return dropout(x, rate, keys_T)

    monkeypatch.setattr(layers, "drop_tokens", spy)
    tokens, at, segments = np.full(8, 5), np.arange(8), np.ones(8, int)
    options = dict(read_N=None, dtype=jnp.float32, remat=False, dropout=Dropout(adapters=0.5, hidden=0.0))
    run = tiny.jit(lambda keys_T: model(tokens, at, segments, ((8, 1),), dropout_keys_T=keys_T, **options))
    for step in (0, 1):
        run(jax.random.split(jax.random.fold_in(jax.random.key(0), step), 8))
    jax.effects_barrier()
    # Steps, layers, and four inputs of a layer: one mask is what q, k, v share, one what gate and up share.
    assert len(masks) == 2 * tiny.CFG.layers * 4
    rows = np.concatenate(masks)
    assert len(np.unique(rows, axis=0)) == len(rows)


def test_the_projections_of_one_input_share_its_mask():
    model = tiny.adapted(tiny.decoder(layers=1))
    bins, _ = tiny.pack(tiny.texts(LENGTHS), shape := BinShape(chunks=1, shards=1, rows=((16, 6),), slots=12))
    options = dict(dropout=Dropout(adapters=0.1, hidden=0.0), dropout_key=jax.random.key(0))
    jaxpr = jax.make_jaxpr(lambda m: tiny.encode(m, bins, shape, **options))(model)
    drawn = [e for e in tiny.equations(jaxpr.jaxpr) if e.primitive.name == "random_bits"]
    assert len(drawn) == 4  # for seven adapters


# Chunks


KEY, RATE = 3, 0.3


def loss_and_slopes(model, encode):
    """Of the first four texts as queries of the others; `encode(model) -> (queries, passages)`."""
    graphdef, adapters, frozen = nnx.split(model, nnx.LoRAParam, ...)

    def loss_fn(adapters):
        vectors = encode(nnx.merge(graphdef, adapters, frozen))
        return tiny.info_nce(*vectors, np.arange(4), np.ones(8, bool), 0.1)[0]

    return tiny.jit(jax.value_and_grad(loss_fn))(adapters)


@pytest.fixture(scope="module")
def in_a_loop(model):
    def encode(model):
        vectors = one_at_a_time(model, padded(tiny.texts(LENGTHS)), RATE, jax.random.key(KEY))
        return vectors[:4], vectors[4:]

    return loss_and_slopes(model, encode)


@pytest.mark.parametrize("kept", [0, 1, 3, 6])
def test_chunks_kept_or_encoded_again_give_the_loss_and_gradient_of_a_loop_over_texts(model, in_a_loop, kept):
    """With dropout, and with spare chunks, which change neither; test_sharding.py compares with one chunk."""
    texts = tiny.texts(LENGTHS)
    shape = BinShape(chunks=6, shards=1, rows=((16, 1), (8, 1)), slots=12)
    batch = tiny.batch(texts[:4], texts[4:], shape)
    assert batch.bins.used_C.sum() == 4
    options = dict(dropout=Dropout(adapters=RATE, hidden=0.0), dropout_key=jax.random.key(KEY))

    def in_chunks(model):
        vectors = tiny.encode(model, batch.bins, shape, kept=kept, remat=True, **options)
        return vectors[batch.query_Q], vectors[batch.passage_P]

    expected, slopes = in_a_loop
    assert optax.tree.norm(slopes) > 0.1
    value, slopes_ = loss_and_slopes(model, in_chunks)
    np.testing.assert_allclose(value, expected, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), slopes_, slopes)
