"""Each pooling is what a loop over texts says, wherever they lie; latents start as the mean and are trained."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from e5jax import hf, lora, models
from e5jax.layers import NO_DROPOUT
from e5jax.packing import BinShape
from e5jax.pooling import KINDS, HeadParam, Pooling, unit
from tests import tiny


DIM = 24
LENGTHS = (5, 1, 9, 3, 16, 2, 8)
# Several texts a row, several rows of two widths, room left over, and slots that stay empty.
SHAPE = BinShape(chunks=1, shards=1, rows=((16, 3), (8, 2)), slots=10)


def packed(dtype=jnp.float32):
    """-> (hidden states [T, D] of a bin, its positions, texts and ends, those states text by text, each one's slot)."""
    bins, vector = tiny.pack(tiny.texts(LENGTHS), SHAPE)
    positions_T, segments_T, last_N = (x[0, 0] for x in (bins.positions_CST, bins.segments_CST, bins.last_CSN))
    x_TD = jnp.asarray(np.random.default_rng(0).normal(size=(SHAPE.tokens, DIM)), dtype)
    assert (segments_T == 0).any() and (np.sort(vector) != np.arange(len(vector))).any() | (SHAPE.slots > len(vector))
    each = [np.asarray(x_TD, np.float64)[segments_T == slot + 1] for slot in vector]
    return x_TD, positions_T, segments_T, last_N, each, vector


LOOPS = {
    "last": lambda x: x[-1],
    "cls": lambda x: x[0],
    "mean": lambda x: sum(x) / len(x),
    "weighted_mean": lambda x: sum(i * state for i, state in enumerate(x, 1)) / sum(range(1, len(x) + 1)),
    "latent": lambda x: sum(x) / len(x),  # as long as nothing is learnt
}


def pooling(kind):
    return Pooling(kind, DIM, rngs=nnx.Rngs(0))


@pytest.fixture(autouse=True)
def few_latents(monkeypatch):
    monkeypatch.setattr("e5jax.pooling.LATENTS", 7)


@pytest.mark.parametrize("kind", KINDS)
def test_a_pooling_is_a_loop_over_the_tokens_of_each_text(kind):
    *arrays, each, vector = packed()
    assert [len(x) for x in each] == [*LENGTHS]
    found = np.asarray(tiny.jit(pooling(kind))(*arrays))[vector]
    np.testing.assert_allclose(found, [LOOPS[kind](x) for x in each], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_padding_or_other_texts_reaches_a_vector(kind):
    x_TD, positions_T, segments_T, last_N, _, vector = packed()
    model = trained(pooling("latent")) if kind == "latent" else pooling(kind)
    before = np.asarray(model(x_TD, positions_T, segments_T, last_N))[vector]
    theirs = segments_T == vector[2] + 1
    others = jnp.where(theirs[:, None], x_TD, 1e4)
    after = np.asarray(model(others, positions_T, segments_T, last_N))[vector]
    np.testing.assert_allclose(after[2], before[2], atol=1e-5)
    assert np.isfinite(after).all() and np.abs(after - before).max() > 1


@pytest.mark.parametrize("kind", ["mean", "weighted_mean"])
def test_means_in_bfloat16_are_summed_in_float32(kind):
    *arrays, each, vector = packed(jnp.bfloat16)
    found = pooling(kind)(*arrays)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(np.asarray(found)[vector], [LOOPS[kind](x) for x in each], atol=1e-6)


def test_a_mean_of_many_tokens_in_bfloat16_loses_nothing():
    n = 3_000  # a sum in bfloat16 stops growing at 256
    x_TD, zeros = jnp.ones((n, DIM), jnp.bfloat16), np.zeros(n, np.int32)
    for kind in ("mean", "weighted_mean"):
        found = pooling(kind)(x_TD, np.arange(n), zeros + 1, np.array([n - 1, 0]))
        np.testing.assert_allclose(found[0], 1, atol=1e-5)


@pytest.mark.parametrize("kind", ["mean", "weighted_mean", "cls", "last"])
def test_the_gradient_of_a_pooling_is_each_tokens_weight(kind):
    x_TD, positions_T, segments_T, last_N, each, vector = packed()
    total = lambda x_TD: pooling(kind)(x_TD, positions_T, segments_T, last_N)[vector].sum()
    slope_T = np.asarray(jax.grad(total)(x_TD))[:, 0]
    assert not slope_T[segments_T == 0].any()
    for x, slot in zip(each, vector, strict=True):
        weights = [LOOPS[kind](row) for row in np.eye(len(x))[:, :, None]]  # one token at a time is 1
        np.testing.assert_allclose(slope_T[segments_T == slot + 1], np.ravel(weights), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_slots_without_text_are_finite_forward_and_backward(kind):
    x_TD, positions_T, segments_T, last_N, *_ = packed()
    total = lambda x_TD: unit(pooling(kind)(x_TD, positions_T, segments_T, last_N)).sum()
    value, slope = jax.value_and_grad(total)(x_TD)
    assert np.isfinite(value) and np.isfinite(slope).all()


# Latents


def trained(pooling):
    """With the two weights that begin at zero away from it."""
    for i, weight in enumerate((pooling.latent.o, pooling.latent.down)):
        weight[...] = 0.3 * jax.random.normal(jax.random.key(i), weight.shape)
    return pooling


def latent_loop(latent, x):
    """One text, one token and one head at a time, as NV-Embed's section 3.1 says, around residual sums."""
    norm = lambda v: (v - v.mean()) / np.sqrt(v.var() + 1e-5)
    get = lambda name: np.asarray(getattr(latent, name)[...], np.float64)
    latents = [norm(row) for row in get("latents")]
    out = []
    for state in x:
        query, heads = norm(state), []
        for head in range(get("q").shape[1]):
            q = query @ get("q")[:, head]
            keys, values = ([row @ get(name)[:, head] for row in latents] for name in ("k", "v"))
            scores = np.exp([q @ key / np.sqrt(len(q)) for key in keys])
            heads.append(sum(s * value for s, value in zip(scores, values, strict=True)) / scores.sum())
        state = state + sum(h @ o for h, o in zip(heads, get("o"), strict=True))
        hidden = np.asarray(jax.nn.gelu(norm(state) @ get("up")), np.float64)
        out.append(state + hidden @ get("down"))
    return np.mean(out, axis=0)


def test_trained_latents_are_attention_to_them_and_an_mlp_then_the_mean():
    model = trained(pooling("latent"))
    assert model.latent.latents.shape == (7, DIM) and model.latent.q.shape == (DIM, 8, 3)
    *arrays, each, vector = packed()
    found = np.asarray(tiny.jit(model)(*arrays))[vector]
    np.testing.assert_allclose(found, [latent_loop(model.latent, x) for x in each], atol=1e-4)


def test_a_width_that_eight_heads_do_not_divide_has_one():
    assert Pooling("latent", 20, rngs=nnx.Rngs(0)).latent.q.shape == (20, 1, 20)


def test_latents_are_trained_beside_adapters_while_the_base_is_frozen():
    plain = tiny.decoder()
    cfg = dataclasses.replace(plain.cfg, pooling="latent")
    model = models.changed(plain, cfg, None, None)
    bins, vector = tiny.pack(tiny.texts((5, 9, 3, 12)), SHAPE)
    mean = models.changed(plain, dataclasses.replace(cfg, pooling="mean"), None, None)
    encode = lambda model: tiny.encode(model, bins, SHAPE)[vector]
    jitted = tiny.jit(encode)
    np.testing.assert_allclose(jitted(model), jitted(mean), atol=1e-6)  # it starts out as the mean

    lora.adapt(model, 2, 4.0, ("q", "down"), jax.random.key(0))
    graphdef, params, frozen = nnx.split(model, nnx.LoRAParam, ...)
    head = {path[-1] for path, leaf in nnx.to_flat_state(params) if isinstance(leaf, HeadParam)}
    assert head == {"latents", "q", "k", "v", "o", "up", "down"}
    assert {path[0] for path, _ in nnx.to_flat_state(frozen)} & {"pooling"} == set()

    def total(params):
        return (encode(nnx.merge(graphdef, params, frozen)) * np.arange(DIM)).sum()

    push = lambda p: p + 0.1 * jax.random.normal(jax.random.key(p.size), p.shape)  # away from zero
    slopes = tiny.jit(jax.grad(total))(jax.tree.map(push, params))
    for path, slope in nnx.to_flat_state(slopes):
        assert np.abs(slope[...]).max() > 1e-6, path


# Decoders that see both sides


def both_sides(model, tokens, window):
    """transformers' Mistral under a mask of ours -> the last hidden states of one text."""
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    i, j = np.indices((len(tokens), len(tokens)))
    seen = np.abs(i - j) <= (len(tokens) if window is None else window)
    mask = torch.tensor(np.where(seen, 0.0, -1e9), dtype=torch.float32)[None, None]
    theirs = transformers.AutoModel.from_pretrained(model, attn_implementation="eager", dtype=torch.float32).eval()
    with torch.no_grad():
        return theirs(torch.tensor(tokens)[None], attention_mask=mask).last_hidden_state[0].numpy()


def states(model, texts):
    """All texts in one bin -> the states of each."""
    bins, vector = tiny.pack(texts, SHAPE)
    arrays = (x[0, 0] for x in (bins.tokens_CST, bins.positions_CST, bins.segments_CST))
    options = dict(read_N=None, dtype=jnp.float32, remat=False, dropout=NO_DROPOUT, dropout_keys_T=None)
    x_TD = np.asarray(tiny.jit(lambda model, *a: model(*a, SHAPE.rows, **options))(model, *arrays))
    stops = bins.last_CSN[0, 0, vector] + 1
    return [x_TD[stop - len(text) : stop] for text, stop in zip(texts, stops, strict=True)]


@pytest.mark.parametrize("window", [None, 3])
def test_a_decoder_that_is_not_causal_is_transformers_under_a_mask_of_both_sides(window, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = tiny.decoder(window=window, causal=False)
    hf.save(nnx.to_pure_dict(nnx.state(model)), model.cfg, "float32", tmp_path)
    assert hf.read_config(tmp_path).architecture == model.cfg
    own = transformers.AutoModel.from_pretrained(tmp_path, attn_implementation="eager", dtype=torch.float32).eval()
    texts = tiny.texts((12, 5, 1, 8))
    for text, state in zip(texts, states(model, texts), strict=True):
        np.testing.assert_allclose(state, both_sides(tmp_path, text, window), atol=1e-5)
        with torch.no_grad():  # by what config.json says, without a mask of ours
            np.testing.assert_allclose(state, own(torch.tensor(text)[None]).last_hidden_state[0], atol=1e-5)
    causal = states(tiny.decoder(window=window), texts)
    assert np.abs(causal[0] - states(model, texts)[0])[0].max() > 1e-2  # the first token sees others now
