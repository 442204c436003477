"""Who sees whom inside a row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from e5jax import attention
from e5jax.attention import attend, visible
from e5jax.flops import executed
from e5jax.layers import NO_DROPOUT
from tests import tiny


SEGMENTS = np.array([[1, 1, 1, 1, 2, 2, 0, 0]])  # a row of two texts and padding


def rows_of(text):
    return np.array([[int(c) for c in line] for line in text.split()], bool)


@pytest.mark.parametrize(
    ("causal", "window", "expected"),
    [
        (True, 3, "10000000 11000000 11100000 01110000 00001000 00001100 00000010 00000011"),
        (True, 1, "10000000 01000000 00100000 00010000 00001000 00000100 00000010 00000001"),
        (True, None, "10000000 11000000 11100000 11110000 00001000 00001100 00000010 00000011"),
        (False, 2, "11100000 11110000 11110000 01110000 00001100 00001100 00000011 00000011"),
        (False, None, "11110000 11110000 11110000 11110000 00001100 00001100 00000011 00000011"),
    ],
)
def test_a_token_sees_its_own_text_inside_the_window(causal, window, expected):
    i = np.arange(8)
    np.testing.assert_array_equal(visible(SEGMENTS, SEGMENTS, i, i, causal, window)[0], rows_of(expected))


@pytest.mark.parametrize("window", [1, 3, None])
def test_a_token_of_a_one_layer_decoder_depends_on_the_window_and_on_nothing_else(window):
    T = 8
    graphdef, embed, rest = nnx.split(tiny.decoder(layers=1, window=window), nnx.PathContains("embed"), ...)
    tokens, positions, segments = np.arange(T), np.arange(T), np.ones(T, int)

    def states(embed):
        options = dict(read_N=None, dtype=jnp.float32, remat=False, dropout=NO_DROPOUT, dropout_keys_T=None)
        return nnx.merge(graphdef, embed, rest)(tokens, positions, segments, ((T, 1),), **options)

    (slopes_TDVD,) = jax.tree.leaves(tiny.jit(jax.jacrev(states))(embed))
    depends_TV = np.abs(slopes_TDVD).max((1, 3)) > 0
    i, j = np.indices((T, T))
    np.testing.assert_array_equal(depends_TV[:, :T], (j <= i) & (j > i - (window or T)))


def softmax_attention(q, k, v, causal, window):
    """One text, one query position and one head at a time."""
    out = np.zeros_like(q)
    for i in range(len(q)):
        first = 0 if window is None else max(0, i - window + causal)
        last = i + 1 if causal else len(q) if window is None else i + window + 1
        for head in range(q.shape[1]):
            group = head // (q.shape[1] // k.shape[1])
            scores = k[first:last, group] @ q[i, head] / np.sqrt(q.shape[2])
            weights = np.exp(scores - scores.max())
            out[i, head] = weights @ v[first:last, group] / weights.sum()
    return out


@pytest.fixture(params=[3, 128], ids=lambda queries: f"blocks of {queries}", name="block")
def _block(request, monkeypatch):
    monkeypatch.setattr(attention, "BLOCK", request.param)


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize(("causal", "window"), [(True, 3), (True, None), (False, 3)])
def test_rows_of_one_width_or_of_two_give_what_each_text_alone_gives(causal, window):
    lengths, rng = (7, 3, 4, 2), np.random.default_rng(0)
    texts = [[rng.normal(size=(n, heads, 10)).astype(np.float32) for heads in (6, 2, 2)] for n in lengths]
    expected = [softmax_attention(*text, causal, window) for text in texts]
    for rows, offsets in [
        (((8, 3),), (0, 8, 16, 20)),
        (((8, 2), (4, 2)), (0, 11, 16, 22)),
        (((24, 1),), (0, 7, 10, 14)),
    ]:
        q, k, v = (np.full((24, heads, 10), 3, np.float32) for heads in (6, 2, 2))
        segments = np.zeros(24, np.int32)
        for number, (text, offset, n) in enumerate(zip(texts, offsets, lengths, strict=True), 1):
            segments[offset : offset + n] = number
            for bin_, x in zip((q, k, v), text, strict=True):
                bin_[offset : offset + n] = x
        out = tiny.jit(attend, static_argnums=(4, 6, 7))(q, k, v, segments, rows, None, causal, window)
        for want, offset, n in zip(expected, offsets, lengths, strict=True):
            np.testing.assert_allclose(out[offset : offset + n], want, atol=1e-5, rtol=0)
        assert np.isfinite(out).all()


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize(("causal", "window"), [(True, 3), (True, None), (False, None)])
def test_the_backward_rule_gives_the_slopes_that_jax_finds_for_the_formula(causal, window):
    rng, i = np.random.default_rng(0), np.arange(8)
    q, k, v, g = (rng.normal(size=(16, heads, 10)).astype(np.float32) for heads in (6, 2, 2, 6))
    segments = np.repeat([1, 2, 3, 0], [5, 3, 6, 2])

    def formula(q, k, v):
        q_RQKGH, k_RSKH, v_RSKH = q.reshape(2, 8, 2, 3, 10), k.reshape(2, 8, 2, 10), v.reshape(2, 8, 2, 10)
        scores = jnp.einsum("RQKGH,RSKH->RKGQS", q_RQKGH, k_RSKH, precision="highest") / np.sqrt(10)
        seen = visible(segments.reshape(2, 8), segments.reshape(2, 8), i, i, causal, window)
        weights = jax.nn.softmax(jnp.where(seen[:, None, None], scores, -np.inf))
        return jnp.einsum("RKGQS,RSKH->RQKGH", weights, v_RSKH, precision="highest").reshape(16, 6, 10)

    ours = lambda q, k, v: attend(q, k, v, segments, ((8, 2),), None, causal, window)
    wanted, found = (tiny.jit(lambda *x, f=f: jax.vjp(f, *x)[1](g))(q, k, v) for f in (formula, ours))
    for name, want, have in zip("qkv", wanted, found, strict=True):
        np.testing.assert_allclose(have, want, atol=1e-5, rtol=0, err_msg=name)


def test_padding_is_finite_forward_and_backward_in_a_row_without_text():
    def total(x, segments):
        return attend(x, x[:, :2], x[:, :2], segments, ((8, 2),), None, True, 3).sum()

    x = jax.random.normal(jax.random.key(0), (16, 6, 10))
    value, slope = tiny.jit(jax.value_and_grad(total))(x, np.array([1] * 5 + [0] * 11))
    assert np.isfinite(value) and np.isfinite(slope).all()
    padding, i = np.zeros((1, 4), int), np.arange(4)
    assert visible(padding, padding, i, i, True, 2).any(-1).all()  # no row of scores is empty


@pytest.mark.parametrize(("causal", "window"), [(True, None), (True, 5), (True, 11), (False, 5), (False, None)])
def test_wide_rows_in_turns_of_a_few_queries_are_the_same_as_at_once(causal, window, monkeypatch):
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(64, heads, 6)).astype(np.float32) for heads in (4, 2, 2))
    segments = np.repeat([1, 2, 0, 1, 0], [9, 14, 9, 30, 2])  # two rows of 32

    def outputs(q):
        return attend(q, k, v, segments, ((32, 2),), None, causal, window)

    at_once, slope = outputs(q), jax.grad(lambda q: (outputs(q) ** 2).sum())(q)
    monkeypatch.setattr(attention, "DENSE", 8)
    monkeypatch.setattr(attention, "QUERIES", 4)
    np.testing.assert_allclose(outputs(q), at_once, atol=1e-6)
    np.testing.assert_allclose(jax.grad(lambda q: (outputs(q) ** 2).sum())(q), slope, atol=1e-5)


@pytest.mark.parametrize(
    ("width", "causal", "window", "share"),
    [
        (256, True, None, 3 / 4),  # blocks of 128
        (2048, True, None, 9 / 16),
        (8192, True, None, 9 / 16),
        (8192, True, 1024, (1024 + 7 * 1279) / 8192 / 8),
        (8192, False, None, 1),
    ],
)
def test_a_row_computes_scores_up_to_the_end_of_a_part_or_of_the_window_and_no_others(width, causal, window, share):
    x_TNH, segments_T = jax.ShapeDtypeStruct((width, 1, 4), jnp.float32), jnp.ones(width, int)
    run = lambda x: attend(x, x, x, segments_T, ((width, 1),), None, causal=causal, window=window)
    of_all_scores = 2 * 2 * width**2 * 4  # scores, and their weights with the values
    assert executed(jax.make_jaxpr(run)(x_TNH)) / of_all_scores == pytest.approx(share, rel=1e-3)
