"""What all texts begin with is read once, and only the tokens that are read pass the last layer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from e5jax import encoder as encoders
from e5jax.attention import attend
from e5jax.encoder import Encoder, shared_prefix
from e5jax.formats import INSTRUCT, Prompts
from e5jax.sharding import make_mesh
from tests import tiny, tiny_bert


LENGTHS = (1, 9, 4, 17, 6, 2)


def encoder_of(model, **changes):
    prompts = Prompts(query=INSTRUCT, passage="")
    fields = dict(tokenizer=None, max_length=64, dtype=jnp.dtype("float32"), prompts=prompts, digest="", mesh=None)
    return Encoder(model=model, **fields | changes)


def encode(encoder, ids, monkeypatch, shared):
    """-> (vectors, tokens that were put in bins, widths of the prefixes read)."""
    tokens, prefixes = [], []
    read, pack = encoders.read_prefix, encoders.pack_corpus
    with monkeypatch.context() as patch:
        patch.setattr(encoders, "SHARED", shared)
        patch.setattr(encoders, "read_prefix", lambda *a: (prefixes.append(a[2].shape), read(*a))[1])
        patch.setattr(encoders, "pack_corpus", lambda lengths, *a: (tokens.append(lengths.sum()), pack(lengths, *a))[1])
        return encoder.encode_ids(ids, encoders.silent), sum(tokens), prefixes


@pytest.mark.parametrize("changes", [{}, {"family": "qwen3", "qk_norm": True, "window": 30}])
def test_texts_behind_a_shared_prefix_get_the_vectors_they_get_alone(changes, monkeypatch):
    encoder = encoder_of(tiny.decoder(**changes))
    prefix, *rest = tiny.texts((40, *LENGTHS))
    ids = [np.concatenate([prefix, text]) for text in rest]
    alone, every, none = encode(encoder, ids, monkeypatch, 1000)
    behind, fewer, prefixes = encode(encoder, ids, monkeypatch, 8)
    np.testing.assert_allclose(behind, alone, atol=2e-6)
    assert every == sum(map(len, ids)) and not none
    assert fewer == sum(LENGTHS) and prefixes == [(64,)]


@pytest.mark.parametrize(("longest", "read"), [(100, True), (200, False)])
def test_what_is_little_of_the_texts_is_not_read_apart(longest, read, monkeypatch):
    prefix, *rest = tiny.texts((8, longest, longest))
    ids = [np.concatenate([prefix, text]) for text in rest]
    assert bool(encode(encoder_of(tiny.decoder()), ids, monkeypatch, 8)[2]) == read


def test_a_prefix_on_a_mesh_is_the_same(monkeypatch):
    prefix, *rest = tiny.texts((20, *LENGTHS))
    ids = [np.concatenate([prefix, text]) for text in rest]
    encoder = encoder_of(tiny.decoder())
    alone = encode(encoder, ids, monkeypatch, 1000)[0]
    on_mesh = dataclasses.replace(encoder, mesh=make_mesh((8, 1, 1)))
    vectors, _, prefixes = encode(on_mesh, ids, monkeypatch, 8)
    assert prefixes
    np.testing.assert_allclose(vectors, alone, atol=2e-6)


@pytest.mark.parametrize(
    ("texts", "shared"),
    [
        ([[1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 3]], 2),  # each keeps a token
        ([[1, 2, 3, 4], [1, 2, 3, 4]], 3),
        ([[1, 2], [2, 2]], 0),
        ([[1], [1, 2]], 0),
        ([[1, 2, 3]], 0),  # nobody to share with
        ([], 0),
    ],
)
def test_the_shared_prefix_is_what_all_begin_with(texts, shared):
    assert shared_prefix([np.array(text) for text in texts]) == shared


@pytest.mark.parametrize("changes", [{"causal": False}, {"pooling": "mean"}, {"pooling": "weighted_mean"}])
def test_where_later_tokens_or_every_token_count_nothing_is_shared(changes, monkeypatch):
    prefix, *rest = tiny.texts((20, *LENGTHS))
    ids = [np.concatenate([prefix, text]) for text in rest]
    assert not encode(encoder_of(tiny.decoder(**changes)), ids, monkeypatch, 8)[2]


def test_wide_rows_see_the_prefix_turn_by_turn(monkeypatch):
    monkeypatch.setattr("e5jax.attention.DENSE", 16)
    monkeypatch.setattr("e5jax.attention.QUERIES", 8)
    monkeypatch.setattr(encoders, "CLASSES", ((32, 32), (64, 64)))
    encoder = encoder_of(tiny.decoder(window=30))
    prefix, *rest = tiny.texts((12, 30, 17, 8, 1))
    ids = [np.concatenate([prefix, text]) for text in rest]
    anew = tiny.jit(encoders.embed.__wrapped__, static_argnums=(0, 3, 4))  # not what was compiled for other turns
    monkeypatch.setattr(encoders, "embed", anew)
    alone = encode(encoder, ids, monkeypatch, 1000)[0]
    np.testing.assert_allclose(encode(encoder, ids, monkeypatch, 8)[0], alone, atol=2e-6)


# The last layer


def sizes_of_products(model, bins, shape):
    """Of the operands of all products: tokens of a bin, or, where only these are read, its slots."""
    jaxpr = jax.make_jaxpr(lambda m: tiny.encode(m, bins, shape))(model)
    dots = [e for e in tiny.equations(jaxpr.jaxpr) if e.primitive.name == "dot_general"]
    return {size for e in dots for size in e.invars[0].aval.shape}


@pytest.mark.parametrize(("pooling", "layers"), [("last", 3), ("cls", 3)])
def test_only_tokens_that_are_read_pass_the_last_layer_and_nothing_changes(pooling, layers, monkeypatch):
    make = {
        "last": lambda: tiny.adapted(tiny.decoder(layers=layers)),
        "cls": lambda: tiny_bert.encoder(dataclasses.replace(tiny_bert.BERT, layers=layers, pooling="cls")),
    }
    model = make[pooling]()
    vocabulary = model.cfg.vocab_size
    shape = tiny.BinShape(chunks=2, shards=1, rows=((32, 2),), slots=11)
    bins, vector = tiny.pack([text % vocabulary for text in tiny.texts((7, 20, 30, 9))], shape)
    assert shape.slots in sizes_of_products(model, bins, shape)

    def total(model):
        weights = jnp.cos(jnp.arange(len(vector) * model.cfg.dim)).reshape(len(vector), -1)
        return jnp.sum(tiny.encode(model, bins, shape)[vector] * weights)

    pruned = tiny.jit(jax.value_and_grad(total, allow_int=True))(model)
    read = type(model.pooling).read

    class Whole(type(model.pooling)):
        def read(self, positions_T, last_N):
            return None

        def __call__(self, x_TD, positions_T, segments_T, last_N):
            return x_TD[read(self, positions_T, last_N)]

    whole = _fresh_pooling(model, Whole)
    assert shape.slots not in sizes_of_products(whole, bins, shape)
    expected = tiny.jit(jax.value_and_grad(total, allow_int=True))(whole)
    np.testing.assert_allclose(pruned[0], expected[0], rtol=1e-5)
    for mine, theirs in zip(jax.tree.leaves(pruned[1]), jax.tree.leaves(expected[1]), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=2e-5)


def _fresh_pooling(model, kind):
    model = jax.tree.map(lambda leaf: leaf, model)
    model.pooling = kind(model.cfg.pooling, model.cfg.dim, rngs=nnx.Rngs(0))
    return model


def test_attention_in_bfloat16_multiplies_nothing_mixed_forward_or_backward():
    x = jnp.ones((16, 4, 8), jnp.bfloat16)
    segments = jnp.ones(16, jnp.int32)
    total = lambda x: attend(x, x[:, :2], x[:, :2], segments, ((8, 2),), None, True, None).astype(jnp.float32).sum()
    jaxpr = jax.make_jaxpr(jax.grad(total))(x)
    dots = [e for e in tiny.equations(jaxpr.jaxpr) if e.primitive.name == "dot_general"]
    assert len(dots) >= 6
    assert all(e.invars[0].aval.dtype == e.invars[1].aval.dtype == jnp.bfloat16 for e in dots)
