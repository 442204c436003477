"""What a student can learn besides InfoNCE: shorter vectors, and what a teacher knows of the same texts.

Vectors have unit length, so products are cosines; all is computed in f32, at the highest precision. What is said not to
be there (a slot without a text, a query without negatives) may hold anything, NaN too: it moves neither value nor
gradient.

Shapes: V vectors, Q queries, P passages, K own negatives of a query at most, D student dims, E teacher dims.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from e5jax.contrast import Contrast, info_nce
from e5jax.pooling import unit
from e5jax.sharding import constrain


LOWEST = -1e30  # a score that no softmax sees; finite, since inf - inf is NaN


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Distill:
    """What a student learns from its teacher: a weight for each loss, 0 for those that are not computed."""

    contrastive: float
    match: float
    kl: float
    margin_mse: float
    temperature: float
    """Of the teacher's scores."""
    projection_ED: jax.Array
    """From the teacher's vectors to the student's width, for `match`."""
    graphdef: nnx.GraphDef | None
    """Of a live teacher."""


def total(
    q_QD: jax.Array,
    p_PD: jax.Array,
    tq_QE: jax.Array | None,
    tp_PE: jax.Array | None,
    batch,
    temperature: float,
    contrast: Contrast,
    matryoshka: Sequence[int],
    distill: Distill | None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The weighted sum of all losses -> (loss, {accuracy, and with a teacher each loss by name}).

    `batch` says who is whose passage (`batch.Batch`). What compares scores is averaged over the whole vectors and each
    of their `matryoshka` beginnings; `match` compares whole vectors.
    """
    widths = [(q_QD, p_PD), *((truncated(q_QD, dims), truncated(p_PD, dims)) for dims in matryoshka)]
    over_widths = lambda f: sum(f(q, p) for q, p in widths) / len(widths)
    of_info_nce = lambda q, p: info_nce(q, p, batch, temperature, contrast)
    contrastive = lambda: over_widths(lambda q, p: of_info_nce(q, p)[0])
    accuracy = of_info_nce(q_QD, p_PD)[1]
    if distill is None:
        return contrastive(), {"accuracy": accuracy}
    tq_QE, tp_PE = (jax.lax.stop_gradient(unit(x)) for x in (tq_QE, tp_PE))
    own = batch.positive_Q, batch.negative_QK, batch.has_QK

    def matched():
        project = lambda x: unit(jnp.einsum("VE,ED->VD", x, distill.projection_ED, precision=jax.lax.Precision.HIGHEST))
        valid = jnp.concatenate([jnp.ones(len(q_QD), bool), batch.valid_P])
        return match(jnp.concatenate([q_QD, p_PD]), project(jnp.concatenate([tq_QE, tp_PE])), valid)

    losses = {
        "contrastive": contrastive,
        "match": matched,
        "kl": lambda: over_widths(
            lambda q, p: score_kl(q, p, tq_QE, tp_PE, batch.valid_P, temperature, distill.temperature)
        ),
        "margin_mse": lambda: over_widths(lambda q, p: margin_mse(q, p, tq_QE, tp_PE, *own)),
    }
    computed = {name: f() for name, f in losses.items() if getattr(distill, name)}
    return sum(getattr(distill, name) * value for name, value in computed.items()), {"accuracy": accuracy, **computed}


def truncated(x_VD: jax.Array, dims: int) -> jax.Array:
    """The first `dims` of each vector, at most D, of unit length again -> [V, dims].

    A loss on them besides the one on whole vectors is Matryoshka representation learning (arXiv 2205.13147).
    """
    return unit(x_VD[:, :dims])


def match(student_VD: jax.Array, teacher_VD: jax.Array, valid_V: jax.Array) -> jax.Array:
    """Mean of 1 - cosine of each valid vector with the teacher's of the same text, in 0 … 2; 0 where none is valid."""
    student_VD, teacher_VD = _there(student_VD, valid_V), _there(teacher_VD, valid_V)
    cosine_V = jnp.einsum("VD,VD->V", student_VD, teacher_VD, precision=jax.lax.Precision.HIGHEST)
    return _mean(1 - cosine_V, valid_V)


def score_kl(
    q_QD: jax.Array,
    p_PD: jax.Array,
    tq_QE: jax.Array,
    tp_PE: jax.Array,
    valid_P: jax.Array,
    temperature: float,
    teacher_temperature: float,
) -> jax.Array:
    """Mean over queries of KL(teacher || student) in nats, of softmaxes of cosine / temperature over valid passages.

    The teacher's scores as soft labels (arXiv 1503.02531), without that paper's factor of temperature², which a weight
    can hold. 0 where no passage is valid.
    """
    student_QP = _log_softmax(q_QD, p_PD, valid_P, temperature)
    teacher_QP = _log_softmax(tq_QE, tp_PE, valid_P, teacher_temperature)
    return jnp.mean(jnp.sum(jnp.exp(teacher_QP) * (teacher_QP - student_QP), axis=1))


def margin_mse(
    q_QD: jax.Array,
    p_PD: jax.Array,
    tq_QE: jax.Array,
    tp_PE: jax.Array,
    positive_Q: jax.Array,
    negative_QK: jax.Array,
    has_QK: jax.Array,
) -> jax.Array:
    """MarginMSE (arXiv 2010.02666) of cosines: mean over the pairs that `has_QK` of (margin - teacher's margin)².

    A pair is a query and one of its own hard negatives, its margin how much higher the query's positive scores than
    that negative. `positive_Q` and `negative_QK` index passages. 0 where there is no pair.
    """
    student_QK = _margins(q_QD, p_PD, positive_Q, negative_QK, has_QK)
    teacher_QK = _margins(tq_QE, tp_PE, positive_Q, negative_QK, has_QK)
    return _mean(jnp.square(student_QK - teacher_QK), has_QK)


def _log_softmax(q_QD, p_PD, valid_P, temperature):
    p_PD = _there(p_PD, valid_P)
    scores_QP = jnp.einsum("QD,PD->QP", q_QD.astype(jnp.float32), p_PD, precision=jax.lax.Precision.HIGHEST)
    scores_QP = constrain(scores_QP, "shards", None) / temperature
    return jax.nn.log_softmax(jnp.where(valid_P, scores_QP, LOWEST), axis=1)


def _margins(q_QD, p_PD, positive_Q, negative_QK, has_QK):
    """How much higher the positive scores than each of a query's negatives -> [Q, K]."""
    p_PD = jnp.asarray(p_PD, jnp.float32)
    negative_QKD = _there(p_PD[negative_QK], has_QK)
    away_QKD = p_PD[positive_Q][:, None] - negative_QKD
    return jnp.einsum("QD,QKD->QK", q_QD.astype(jnp.float32), away_QKD, precision=jax.lax.Precision.HIGHEST)


def _there(x, valid):
    """Rows in f32, zeros for those that are not valid: a zero times NaN further on would be NaN."""
    return jnp.where(valid[..., None], x.astype(jnp.float32), 0.0)


def _mean(x, valid):
    """Mean of the valid ones; 0 where there are none."""
    return jnp.sum(jnp.where(valid, x, 0.0)) / jnp.maximum(jnp.sum(valid), 1)
