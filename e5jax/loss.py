"""The contrastive step's two halves: encode every text of the global batch, then InfoNCE over all of it.

Shapes: C chunks, S shards, T tokens of a bin, N slots of a bin, D model, Q queries, P passages.
"""

import jax
import jax.numpy as jnp

from e5jax.attention import Rows
from e5jax.decoder import Decoder
from e5jax.packing import Bins
from e5jax.pooling import last_token, unit
from e5jax.sharding import constrain, over_shards


def encode(
    model: Decoder,
    bins: Bins,
    rows: Rows,
    *,
    dtype: jnp.dtype,
    remat: bool,
    recompute_chunks: bool,
    dropout_rate: float,
    dropout_key: jax.Array | None,
) -> jax.Array:
    """Unit vectors of every slot of every bin -> [C · S · N, D] in f32; empty slots hold nothing of meaning.

    `recompute_chunks` keeps nothing of a chunk but its vectors and encodes it again in the backward pass: GradCache
    (arXiv 2101.06983), here plain autodiff through `lax.map(checkpoint(...))`, so the gradient is the exact one of the
    whole batch. Spare chunks are skipped. The dropout mask of a token is a function of (key, row of its text in the
    global batch, position), never of bin or shard.
    """

    def one_bin(tokens_T, positions_T, segments_T, last_N, texts_N):
        keys_T = None
        if dropout_key is not None and dropout_rate > 0:
            token = lambda text, position: jax.random.fold_in(jax.random.fold_in(dropout_key, text), position)
            keys_T = jax.vmap(token)(texts_N[segments_T - 1], positions_T)
        x_TD = model(
            tokens_T,
            positions_T,
            segments_T,
            rows,
            dtype=dtype,
            remat=remat,
            dropout_rate=dropout_rate,
            dropout_keys_T=keys_T,
        )
        return unit(last_token(x_TD, last_N))

    one_chunk = over_shards(one_bin)
    if recompute_chunks:
        one_chunk = jax.checkpoint(one_chunk)

    def one_chunk_or_none(chunk):
        used, *arrays = chunk
        shape = (*bins.last_CSN.shape[1:], model.cfg.dim)
        empty = lambda *_: constrain(jnp.zeros(shape), "shards", None, None)
        return jax.lax.cond(used, one_chunk, empty, *arrays)

    v_CSND = jax.lax.map(
        one_chunk_or_none,
        (
            bins.used_C,
            bins.tokens_CST,
            bins.positions_CST,
            bins.segments_CST,
            bins.last_CSN,
            bins.texts_CSN,
        ),
    )
    # The one gather of embeddings: every device needs every passage.
    return constrain(v_CSND.reshape(-1, v_CSND.shape[-1]), None, None)


def info_nce(
    q_QD: jax.Array,
    p_PD: jax.Array,
    positive_Q: jax.Array,
    valid_P: jax.Array,
    temperature: float,
) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy of each query against every passage of the global batch (E5-Mistral eq. 2 and 3).

    Vectors have unit length, so the product is the cosine. `positive_Q[i]` is query i's passage; all the others, hard
    negatives of other queries included, are its negatives; passages that are not `valid_P` are nobody's.
    -> (mean loss, share of queries whose positive scores highest).
    """
    scores_QP = jnp.einsum("QD,PD->QP", q_QD, p_PD, precision=jax.lax.Precision.HIGHEST)
    scores_QP = jnp.where(valid_P, constrain(scores_QP, "shards", None) / temperature, -jnp.inf)
    positive = jnp.take_along_axis(scores_QP, positive_Q[:, None], axis=1)[:, 0]
    loss = jnp.mean(jax.nn.logsumexp(scores_QP, axis=1) - positive)
    return loss, jnp.mean(positive >= jnp.max(scores_QP, axis=1))
