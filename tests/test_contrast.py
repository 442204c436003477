"""InfoNCE is what eight lines of NumPy say; each switch adds what its formula says, and the paper has none of them on.

sentence-transformers is the reference for the further terms and for hardness.
"""

import jax
import numpy as np
import pytest
import torch
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from e5jax.contrast import Contrast
from e5jax.contrast import info_nce as general
from e5jax.pooling import unit
from e5jax.sharding import make_mesh
from tests import tiny


def vectors(count, seed):
    return np.array(unit(np.random.default_rng(seed).normal(size=(count, 24))))


# Records as (query, passages): the first passage is its own, the others are hard negatives; passage 4 is shared.
RECORDS = ((0, (0,)), (1, (1, 2)), (2, (3, 4, 5, 6)), (3, (4,)), (4, (7, 0)))


def loop(q, p, temperature):
    pool = sorted({passage for _, passages in RECORDS for passage in passages})
    losses, best = [], []
    for query, passages in RECORDS:
        scores = {passage: q[query] @ p[passage] / temperature for passage in pool}
        own = scores[passages[0]]
        losses.append(-np.log(np.exp(own) / sum(np.exp(score) for score in scores.values())))
        best.append(own == max(scores.values()))
    return np.mean(losses), np.mean(best)


def info_nce(q, p, temperature):
    positive = np.array([passages[0] for _, passages in RECORDS])
    return tiny.info_nce(q, p, positive, np.ones(len(p), bool), temperature)


@pytest.mark.parametrize("temperature", [1.0, 0.05])
def test_info_nce_is_the_loop_over_records(temperature):
    q, p = vectors(5, 0), vectors(8, 1)
    p[:2] = 0.9 * p[:2] + 0.5 * q[:2]  # some queries find their own, others do not
    value, accuracy = info_nce(q, p, temperature)
    expected = loop(q.astype(np.float64), p.astype(np.float64), temperature)
    np.testing.assert_allclose((value, accuracy), expected, rtol=1e-5)
    assert 0 < accuracy < 1


def test_the_order_of_a_batch_does_not_change_its_loss():
    q, p, rng = vectors(5, 0), vectors(8, 1), np.random.default_rng(2)
    positive, valid = np.array([4, 1, 0, 1, 7]), np.arange(8) != 3
    of_q, of_p = rng.permutation(5), rng.permutation(8)
    place_of = np.argsort(of_p)
    one = tiny.info_nce(q, p, positive, valid, 0.02)
    other = tiny.info_nce(q[of_q], p[of_p], place_of[positive][of_q], valid[of_p], 0.02)
    np.testing.assert_allclose(one, other, rtol=1e-6)


def test_a_shared_passage_is_no_negative_of_either_query():
    q, p = vectors(2, 0), vectors(3, 1)
    value, _ = tiny.info_nce(q, p, np.array([1, 1]), np.ones(3, bool), 0.1)
    scores = q @ p.T / 0.1
    expected = np.mean(np.log(np.exp(scores).sum(1)) - scores[:, 1])  # passage 1 stands once in each sum
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_padding_passages_change_neither_loss_nor_gradient():
    q, p, positive = vectors(3, 0), vectors(4, 1), np.arange(3)
    value_and_grad = jax.value_and_grad(lambda *args: tiny.info_nce(*args, 0.02)[0], argnums=(0, 1))
    value, (to_q, to_p) = value_and_grad(q, p, positive, np.ones(4, bool))
    padded = np.concatenate([p, q])  # the best of all passages, were they valid
    value_, (to_q_, to_p_) = value_and_grad(q, padded, positive, np.arange(7) < 4)
    np.testing.assert_allclose(value_, value, rtol=1e-6)
    np.testing.assert_allclose(to_q_, to_q, atol=1e-6)
    np.testing.assert_allclose(to_p_, np.concatenate([to_p, np.zeros_like(q)]), atol=1e-6)


# Beyond the paper


Q, K = 5, 2
OWN = np.arange(Q)
HARD = np.stack([Q + np.arange(Q), 2 * Q + np.arange(Q)], axis=1)  # of query i: passages Q + i and 2 Q + i
TERMS = {"query_query": "query_to_query", "passage_query": "doc_to_query", "passage_passage": "doc_to_doc"}
WEIGHED = {"hard": "hard_negatives", "in_batch": "in_batch_negatives", "all": "all_negatives"}


def data(seed=0):
    q, p = vectors(Q, seed), vectors(Q * (1 + K), seed + 1)
    p[:Q] = unit(p[:Q] + 0.7 * q)
    return q, p


def ours(q, p, contrast, temperature=0.1, **more):
    whose = tiny.whose(OWN, np.ones(len(p), bool), HARD, **more)
    return general(q, p, whose, temperature, contrast)[0]


def theirs(q, p, **options):
    """The loss of sentence-transformers and its gradients."""
    loss = MultipleNegativesRankingLoss(torch.nn.Identity(), scale=10.0, **options)
    columns = [torch.tensor(x, requires_grad=True) for x in (q, p[:Q], p[Q : 2 * Q], p[2 * Q :])]
    value = loss.compute_loss_from_embeddings(columns, None)
    value.backward()
    return value.item(), columns[0].grad.numpy(), np.concatenate([x.grad.numpy() for x in columns[1:]])


@pytest.mark.parametrize(
    "terms",
    [(), ("query_query",), ("passage_query",), ("passage_passage",), tuple(TERMS)],
    ids=lambda terms: " ".join(terms) or "none",
)
def test_the_further_terms_are_those_of_sentence_transformers(terms):
    q, p = data()
    contrast = Contrast(**dict.fromkeys(terms, True))
    value, slopes = jax.value_and_grad(lambda q, p: ours(q, p, contrast), argnums=(0, 1))(q, p)
    expected, *expected_slopes = theirs(q, p, directions=("query_to_doc", *(TERMS[term] for term in terms)))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for mine, other in zip(slopes, expected_slopes, strict=True):
        np.testing.assert_allclose(mine, tangent(mine, other, (q, p)), atol=1e-5)


def tangent(mine, other, at):
    """Theirs as it is where cos_sim has made the vectors unit length: without the part along the vector."""
    x = next(x for x in at if x.shape == mine.shape)
    along = lambda slope: (slope * x).sum(1, keepdims=True) * x
    return other + along(mine) - along(other)


@pytest.mark.parametrize("which", WEIGHED)
def test_hardness_weighs_the_negatives_that_sentence_transformers_weighs(which):
    q, p = data()
    contrast = Contrast(hardness=5.0, hardness_of=which)
    value, slopes = jax.value_and_grad(lambda q, p: ours(q, p, contrast), argnums=(0, 1))(q, p)
    expected, *expected_slopes = theirs(q, p, hardness_mode=WEIGHED[which], hardness_strength=5.0)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert abs(value - ours(q, p, Contrast())) > 0.03
    for mine, other in zip(slopes, expected_slopes, strict=True):  # the weight itself has no gradient
        np.testing.assert_allclose(mine, tangent(mine, other, (q, p)), atol=1e-5)


def z_of(q, p, temperature, dropped):
    """Mean of -log(own / Σ) over passages that are not `dropped(i, j)`."""
    scores = np.float64(q) @ p.T
    losses = []
    for i in range(Q):
        kept = [j for j in range(len(p)) if j == OWN[i] or not dropped(i, j)]
        losses.append(np.log(np.exp(scores[i, kept] / temperature).sum()) - scores[i, OWN[i]] / temperature)
    return np.mean(losses)


@pytest.mark.parametrize("margin", [0.1, 0.0, -0.2])
def test_what_scores_above_the_own_passage_by_more_than_the_margin_is_no_negative(margin):
    q, p = data()
    p[1] = unit(p[0] + 0.5 * q[0])  # nearer to query 0 than its own, and query 1's own
    p[Q] = unit(q[0] + 0.01 * p[0])  # a hard negative that is none
    scores = q @ p.T
    above = lambda i, j: scores[i, j] > scores[i, OWN[i]] + margin
    assert any(above(i, j) for i in range(Q) for j in range(len(p)) if j != i)
    value = ours(q, p, Contrast(false_negative_margin=margin))
    np.testing.assert_allclose(value, z_of(q, p, 0.1, above), rtol=1e-5)


def test_the_margin_holds_for_other_queries_and_between_passages_too():
    q, p = data()
    q[1] = unit(q[0] + 0.05 * q[1])  # asks what query 0 asks
    p[2] = unit(p[0] + 0.05 * p[2])  # says what passage 0 says
    terms = dict(query_query=True, passage_passage=True)
    with_them, without = ours(q, p, Contrast(**terms)), ours(q, p, Contrast(**terms, false_negative_margin=0.1))
    own = np.sum(q * p[:Q], axis=1)
    logs = []
    for i in range(Q):
        cosines = [*(q[i] @ p.T), *(q[i] @ q[j] for j in range(Q) if j != i)]
        cosines += [p[i] @ p[j] for j in range(len(p)) if j not in (i, *HARD[i])]
        kept = np.array([c for c in cosines if c <= own[i] + 0.1], np.float64)
        logs.append(np.log(np.exp(kept / 0.1).sum()) - own[i] / 0.1)
    np.testing.assert_allclose(without, np.mean(logs), rtol=1e-5)
    assert without < with_them - 0.1


def test_another_passage_of_an_equal_query_is_no_negative_where_false_negatives_are_left_out():
    q, p = data()
    q[1] = q[0]
    equal = dict(same_Q=[0, 0, 2, 3, 4])
    dropped = lambda i, j: {i, j} == {0, 1}
    kept = Contrast(false_negative_margin=2.0)  # a margin that leaves out nothing by itself
    np.testing.assert_allclose(ours(q, p, kept, **equal), z_of(q, p, 0.1, dropped), rtol=1e-5)
    np.testing.assert_allclose(ours(q, p, Contrast(), **equal), z_of(q, p, 0.1, lambda i, j: False), rtol=1e-5)


def test_an_equal_query_is_never_told_from_itself():
    q, p = data()
    q[1] = q[0]
    terms = Contrast(query_query=True)
    without = ours(q, p, terms, same_Q=[0, 0, 2, 3, 4])
    pairs = [(i, j) for i in range(Q) for j in range(Q) if i != j and {i, j} != {0, 1}]
    logs = []
    for i in range(Q):
        cosines = np.array([*(q[i] @ p.T), *(q[i] @ q[j] for a, j in pairs if a == i)], np.float64)
        logs.append(np.log(np.exp(cosines / 0.1).sum()) - q[i] @ p[i] / 0.1)
    np.testing.assert_allclose(without, np.mean(logs), rtol=1e-5)


def test_a_query_with_its_own_negatives_only_sees_no_other_passage():
    q, p = data()
    own_only = np.array([True, False, True, False, False])
    dropped = lambda i, j: own_only[i] and j not in HARD[i]
    everything = Contrast(query_query=True, passage_passage=True, passage_query=True)
    np.testing.assert_allclose(ours(q, p, Contrast(), own_only_Q=own_only), z_of(q, p, 0.1, dropped), rtol=1e-5)
    alone = ours(q, p, everything, own_only_Q=np.ones(Q, bool))
    np.testing.assert_allclose(alone, z_of(q, p, 0.1, lambda i, j: j not in HARD[i]), rtol=1e-5)


def test_a_query_without_any_negative_of_its_own_learns_nothing_and_harms_nothing():
    q, p = data()
    whose = tiny.whose(OWN, np.ones(len(p), bool), own_only_Q=np.arange(Q) == 0)
    slope = jax.grad(lambda q: general(q, p, whose, 0.1, Contrast())[0])(q)
    assert np.isfinite(slope).all() and not slope[0].any() and slope[1].any()


def test_everything_at_once_is_the_same_on_eight_devices():
    contrast = Contrast(
        query_query=True, passage_passage=True, passage_query=True, false_negative_margin=0.1, hardness=5.0
    )
    q, p, rng = vectors(16, 0), vectors(48, 1), np.random.default_rng(2)
    whose = tiny.whose(
        np.arange(16), np.arange(48) < 44, 16 + rng.integers(0, 28, (16, 2)), own_only_Q=rng.random(16) < 0.3
    )
    value_and_grad = jax.value_and_grad(lambda q, p: general(q, p, whose, 0.1, contrast)[0], argnums=(0, 1))
    alone = value_and_grad(q, p)
    with jax.set_mesh(make_mesh((8, 1, 1))):
        together = tiny.jit(value_and_grad)(q, p)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), together, alone)
