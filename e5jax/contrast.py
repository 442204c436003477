"""InfoNCE over the global batch (E5-Mistral eq. 2 and 3), and what later recipes put beside it.

    loss_i = -log( exp(s(q_i, p_i) / τ) / Z_i ),   Z_i = Σ_j exp(s(q_i, p_j) / τ)

over every passage p_j of the batch: its own p_i, the passages of other queries, hard negatives of all of them. Each
switch of `Contrast` adds terms to Z_i, weighs them or leaves some out.

Shapes: Q queries, P passages, K own hard negatives of a query at most, D model, X queries or passages.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from e5jax.sharding import constrain


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contrast:
    """What else a query is told from; as it stands here, the paper's loss."""

    query_query: bool = False
    """Also from other queries: Σ exp(s(q_i, q_j) / τ) (GTE, arXiv 2308.03281; Qwen3-Embedding, arXiv 2506.05176)."""
    passage_passage: bool = False
    """Also its passage from those that are not its own: Σ exp(s(p_i, p_j) / τ) (the same)."""
    passage_query: bool = False
    """Also its passage's query from all queries: Σ exp(s(q_j, p_i) / τ), j = i included (GTE)."""
    false_negative_margin: float | None = None
    """What scores higher than the query's own passage by more than this, in cosine, is no negative, and neither is
    another passage of an equal query. Qwen3-Embedding: 0.1; less than 0 leaves out more."""
    hardness: float = 0.0
    """α of a negative's weight exp(α s), s without gradient. EmbeddingGemma (arXiv 2509.20354): 5 on hard negatives;
    Lan et al. (arXiv 2503.04812): 9 on in-batch ones."""
    hardness_of: Literal["hard", "in_batch", "all"] = "hard"
    """Which negatives `hardness` weighs: the query's own hard ones, the others, or all."""

    def __post_init__(self):
        if self.hardness < 0:
            raise ValueError(f"contrast.hardness must not be negative, got {self.hardness}")


def info_nce(
    q_QD: jax.Array, p_PD: jax.Array, batch, temperature: float, contrast: Contrast
) -> tuple[jax.Array, jax.Array]:
    """-> (mean of loss_i, share of queries whose own passage scores highest of its candidates).

    Vectors have unit length, so products are cosines. `batch` says who is whose (`batch.Batch`); passages that are not
    `valid_P` are nobody's. A query whose source is `own_negatives_only` has no other terms than its own passages'.
    """
    cos_QP = constrain(_cosines(q_QD, p_PD), "shards", None)
    own_Q = jnp.take_along_axis(cos_QP, batch.positive_Q[:, None], axis=1)[:, 0]
    candidate_QP = _candidates(cos_QP, own_Q, batch, contrast)
    logits_QP = jnp.where(candidate_QP, cos_QP / temperature, -jnp.inf)
    accuracy = jnp.mean(own_Q / temperature >= jnp.max(logits_QP, axis=1))
    if contrast.hardness:
        weighed_QP = _weighed(batch, cos_QP.shape, contrast.hardness_of)
        logits_QP += jnp.where(weighed_QP, contrast.hardness * jax.lax.stop_gradient(cos_QP), 0.0)
    logits = [logits_QP]
    for cos_QX, told_QX in _further(q_QD, p_PD, batch, contrast):
        told_QX = told_QX & _below(cos_QX, own_Q, contrast.false_negative_margin)
        if batch.own_only_Q is not None:
            told_QX = told_QX & ~batch.own_only_Q[:, None]
        logits.append(jnp.where(told_QX, cos_QX / temperature, -jnp.inf))
    log_z_Q = jax.nn.logsumexp(jnp.concatenate(logits, axis=1), axis=1)
    return jnp.mean(log_z_Q - own_Q / temperature), accuracy


def _cosines(x_XD, y_YD):
    return jnp.einsum("XD,YD->XY", x_XD, y_YD, precision=jax.lax.Precision.HIGHEST)


def _candidates(cos_QP, own_Q, batch, contrast):
    """Which passages stand in a query's sum: bool [P] or [Q, P]."""
    candidate_QP = batch.valid_P
    if batch.own_only_Q is not None:
        candidate_QP = candidate_QP & (~batch.own_only_Q[:, None] | _own(batch, cos_QP.shape))
    if contrast.false_negative_margin is None:
        return candidate_QP
    negative_QP = _below(cos_QP, own_Q, contrast.false_negative_margin) & ~_of_equal_queries(batch, cos_QP.shape)
    return candidate_QP & (negative_QP | _positive(batch, cos_QP.shape))


def _further(q_QD, p_PD, batch, contrast):
    """(cosines, which of them count) of each term that is switched on."""
    if contrast.query_query:
        yield constrain(_cosines(q_QD, q_QD), "shards", None), batch.same_Q[:, None] != batch.same_Q
    if contrast.passage_passage:
        shape = len(q_QD), len(p_PD)
        others_QP = batch.valid_P & ~_own(batch, shape) & ~_of_equal_queries(batch, shape)
        yield constrain(_cosines(p_PD[batch.positive_Q], p_PD), "shards", None), others_QP
    if contrast.passage_query:
        mine_QQ = jnp.eye(len(q_QD), dtype=bool)
        asks_it_too_QQ = (batch.positive_Q[:, None] == batch.positive_Q) | (batch.same_Q[:, None] == batch.same_Q)
        yield constrain(_cosines(p_PD[batch.positive_Q], q_QD), "shards", None), mine_QQ | ~asks_it_too_QQ


def _below(cos_QX, own_Q, margin):
    return True if margin is None else cos_QX <= own_Q[:, None] + margin


def _weighed(batch, shape, which):
    hard_QP = _own(batch, shape) & ~_positive(batch, shape)
    return {
        "hard": hard_QP,
        "in_batch": ~_own(batch, shape),
        "all": ~_positive(batch, shape),
    }[which]


def _positive(batch, shape):
    """Each query's own passage -> bool [Q, P]."""
    return jnp.arange(shape[1]) == batch.positive_Q[:, None]


def _own(batch, shape):
    """Each query's own passage and its hard negatives -> bool [Q, P]."""
    queries_Q1 = jnp.arange(shape[0])[:, None]
    return _positive(batch, shape).at[queries_Q1, batch.negative_QK].max(batch.has_QK)


def _of_equal_queries(batch, shape):
    """Passages of queries of the same text, a query's own included -> bool [Q, P]."""
    asked_QP = jnp.zeros(shape, bool).at[batch.same_Q, batch.positive_Q].set(True)
    return asked_QP[batch.same_Q]
