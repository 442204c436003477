"""Each objective is what a NumPy loop in float64 says; what is not there moves neither value nor gradient."""

import functools

import jax
import numpy as np
import pytest

from e5jax import objectives
from e5jax.pooling import unit
from e5jax.sharding import RULES, make_mesh
from tests import tiny


# Every size is another. Passage 4 is a slot without a text; queries have two, no and one own negative; passage 3 is
# both the positive of one query and the negative of another.
Q, P, K, D, E = 3, 7, 2, 12, 20
VALID_P = np.arange(P) != 4
POSITIVE_Q = np.array([3, 0, 6])
NEGATIVE_QK = np.array([[1, 2], [P, -P - 1], [3, 4]])  # nonsense where there is none
HAS_QK = np.array([[True, True], [False, False], [True, False]])
TEMPERATURE, TEACHER_TEMPERATURE = 0.05, 0.3


def vectors(count, dims, seed):
    return np.array(unit(np.random.default_rng(seed).normal(size=(count, dims))))


@pytest.fixture
def student():
    return vectors(Q, D, 0), vectors(P, D, 1)


@pytest.fixture
def teacher():
    return vectors(Q, E, 2), vectors(P, E, 3)


def probabilities(q, passages, temperature):
    exps = [np.exp(q @ p / temperature) for p in passages]
    return [x / sum(exps) for x in exps]


def kl_loop(q, p, tq, tp):
    q, p, tq, tp = (x.astype(np.float64) for x in (q, p, tq, tp))
    total = 0.0
    for i in range(Q):
        theirs = probabilities(tq[i], tp[VALID_P], TEACHER_TEMPERATURE)
        ours = probabilities(q[i], p[VALID_P], TEMPERATURE)
        total += sum(t * np.log(t / s) for t, s in zip(theirs, ours, strict=True))
    return total / Q


def margin_loop(q, p, tq, tp):
    q, p, tq, tp = (x.astype(np.float64) for x in (q, p, tq, tp))
    errors = []
    for i, own in enumerate(POSITIVE_Q):
        for negative in NEGATIVE_QK[i][HAS_QK[i]]:
            margin = q[i] @ p[own] - q[i] @ p[negative]
            errors.append((margin - (tq[i] @ tp[own] - tq[i] @ tp[negative])) ** 2)
    return np.mean(errors)


def score_kl(q, p, tq, tp, valid_P=VALID_P):
    return objectives.score_kl(q, p, tq, tp, valid_P, TEMPERATURE, TEACHER_TEMPERATURE)


def margin_mse(q, p, tq, tp, has_QK=HAS_QK):
    return objectives.margin_mse(q, p, tq, tp, POSITIVE_Q, NEGATIVE_QK, has_QK)


@functools.cache
def compiled(objective):
    """-> (value, gradients of the first two arguments)"""
    return tiny.jit(jax.value_and_grad(objective, argnums=(0, 1)))


def match(ours, theirs):
    return objectives.match(ours, theirs, VALID_P)


# Matryoshka


def test_truncated_vectors_are_the_first_dims_at_unit_length():
    x_VD = vectors(6, D, 0)
    for dims in (1, 5, D):
        expected = [x[:dims].astype(np.float64) / np.linalg.norm(x[:dims].astype(np.float64)) for x in x_VD]
        np.testing.assert_allclose(objectives.truncated(x_VD, dims), expected, atol=1e-6)


# Vectors


def test_match_is_the_mean_of_one_minus_cosine_over_valid_vectors():
    ours, theirs = vectors(P, D, 0), vectors(P, D, 1)
    expected = np.mean([1 - ours[i].astype(np.float64) @ theirs[i] for i in range(P) if VALID_P[i]])
    np.testing.assert_allclose(match(ours, theirs), expected, rtol=1e-5)
    assert abs(match(ours, ours)) < 1e-6
    assert objectives.match(ours, theirs, np.zeros(P, bool)) == 0


# Scores


def test_score_kl_is_the_loop_over_queries_and_valid_passages(student, teacher):
    value, _ = compiled(score_kl)(*student, *teacher)
    np.testing.assert_allclose(value, kl_loop(*student, *teacher), rtol=1e-4)


def test_score_kl_is_zero_for_the_teacher_itself(teacher):
    same = objectives.score_kl(*teacher, *teacher, VALID_P, TEMPERATURE, TEMPERATURE)
    assert abs(same) < 1e-6


def test_margin_mse_is_the_loop_over_queries_and_their_own_negatives(student, teacher):
    value, _ = compiled(margin_mse)(*student, *teacher)
    np.testing.assert_allclose(value, margin_loop(*student, *teacher), rtol=1e-5)


@pytest.mark.parametrize(("objective", "loop"), [(score_kl, kl_loop), (margin_mse, margin_loop)])
def test_gradients_are_the_slopes_of_the_loops(student, teacher, objective, loop):
    rng = np.random.default_rng(5)
    along = [rng.normal(size=x.shape) for x in student]
    wide = [x.astype(np.float64) for x in student]
    moved = lambda s: loop(*(x + s * d for x, d in zip(wide, along, strict=True)), *teacher)
    _, grads = compiled(objective)(*student, *teacher)
    slope = sum((np.float64(g) * d).sum() for g, d in zip(grads, along, strict=True))
    np.testing.assert_allclose(slope, (moved(1e-6) - moved(-1e-6)) / 2e-6, rtol=1e-3)


# What is not there


def spoilt(x_PD, filling):
    """The passages with something else in the slot without a text."""
    return np.where(VALID_P[:, None], x_PD, np.float32(filling))


@pytest.mark.parametrize("objective", [score_kl, margin_mse])
def test_a_slot_without_a_text_moves_neither_value_nor_gradient(student, teacher, objective):
    (q, p), (tq, tp) = student, teacher
    value, grads = compiled(objective)(q, p, tq, tp)
    assert not np.any(grads[1][~VALID_P])
    for filling in (0.0, 1e30, np.inf, np.nan):
        value_, grads_ = compiled(objective)(q, spoilt(p, filling), tq, spoilt(tp, filling))
        assert value_ == value
        jax.tree.map(np.testing.assert_array_equal, grads_, grads)


def test_a_slot_without_a_text_is_not_matched():
    ours, theirs = vectors(P, D, 0), vectors(P, D, 1)
    value, grads = compiled(match)(ours, theirs)
    assert not np.any(grads[0][~VALID_P])
    for filling in (0.0, 1e30, np.inf, np.nan):
        value_, grads_ = compiled(match)(spoilt(ours, filling), spoilt(theirs, filling))
        assert value_ == value
        jax.tree.map(np.testing.assert_array_equal, grads_, grads)


@pytest.mark.parametrize("objective", [score_kl, margin_mse])
def test_with_nothing_to_compare_value_and_gradient_are_zero(student, teacher, objective):
    nothing = np.zeros_like({score_kl: VALID_P, margin_mse: HAS_QK}[objective])
    value, grads = compiled(objective)(*student, *teacher, nothing)
    assert value == 0 and not any(np.any(g) for g in grads)


def test_a_batch_without_room_for_negatives_has_a_margin_mse_of_zero(student, teacher):
    empty = np.zeros((Q, 0), int)
    assert objectives.margin_mse(*student, *teacher, POSITIVE_Q, empty, empty.astype(bool)) == 0


# Precision and layout


def test_the_teacher_s_vectors_may_be_of_half_precision(student, teacher):
    half = [x.astype(np.float16) for x in teacher]
    for objective in (score_kl, margin_mse):
        value, _ = compiled(objective)(*student, *half)
        assert value.dtype == np.float32
        np.testing.assert_allclose(value, compiled(objective)(*student, *map(np.float32, half))[0], rtol=1e-6)


def test_every_product_is_of_the_highest_precision(student, teacher):
    ours = {score_kl: (*student, *teacher), margin_mse: (*student, *teacher), match: (student[1], student[1])}
    for objective, args in ours.items():
        products = tiny.dots(jax.make_jaxpr(objective)(*args).jaxpr)
        assert products and all(p.params["precision"] == (jax.lax.Precision.HIGHEST,) * 2 for p in products)


def test_queries_shared_out_over_devices_give_the_same(teacher):
    args = vectors(16, D, 0), vectors(P, D, 1), vectors(16, E, 2), teacher[1]
    alone = tiny.jit(score_kl)(*args)
    with jax.set_mesh(make_mesh((4, 2, 1))):
        np.testing.assert_allclose(tiny.jit(score_kl)(*args), alone, rtol=1e-5)
        shared = [
            e for e in tiny.equations(jax.make_jaxpr(score_kl)(*args)) if e.primitive.name == "sharding_constraint"
        ]
    assert [e.params["sharding"].spec[0] for e in shared] == [RULES["shards"]] * 2  # neither has all scores of a batch
