"""Attention over one packed bin.

A bin is rows of a few fixed widths laid end to end; each text lies whole in one row, so attention is a reshape of the
bin into rows and a mask inside each row: no gather, and cost linear in the bin.

Shapes: T tokens of the bin, R rows of one width, Q and S query and key positions in a row, N query heads, K key-value
heads, G = N / K query heads a key-value head, H head size.
"""

import jax
import jax.numpy as jnp


Rows = tuple[tuple[int, int], ...]  # ((width, how many), ...), the layout of every bin
DENSE = 2048  # the widest row whose scores are computed at once
QUERIES = 256  # positions a turn in wider ones: memory for scores is linear in the width


def attend(
    q_TNH: jax.Array,
    k_TKH: jax.Array,
    v_TKH: jax.Array,
    segments_T: jax.Array,
    rows: Rows,
    causal: bool,
    window: int | None,
) -> jax.Array:
    """Softmax attention inside each text of the bin -> [T, N, H].

    `segments_T` numbers the text a token belongs to (0: padding). With a window W, key j is seen from query i when
    i − W < j ≤ i, as in Mistral (arXiv 2310.06825); where not causal, when |i − j| ≤ W, as transformers has it.
    """
    parts, start = [], 0
    for width, count in rows:
        stop = start + width * count
        q, k, v, segments = (
            x[start:stop].reshape(count, width, *x.shape[1:]) for x in (q_TNH, k_TKH, v_TKH, segments_T)
        )
        if width <= DENSE or width % QUERIES:
            out = _dense(q, k, v, segments, causal, window)
        else:
            out = _in_turns(q, k, v, segments, causal, window)
        parts.append(out.reshape(width * count, *out.shape[2:]))
        start = stop
    return jnp.concatenate(parts)


def visible(
    segments_RQ: jax.Array, segments_RS: jax.Array, i_Q: jax.Array, j_S: jax.Array, causal: bool, window: int | None
) -> jax.Array:
    """Which key is seen from which query -> bool [R, Q, S]; i and j are their positions in the row.

    Padding sees padding, so no row of scores is empty.
    """
    i, j = i_Q[:, None], j_S[None, :]
    near = jnp.ones_like(i - j, dtype=bool)
    if causal:
        near &= j <= i
    if window is not None:
        near &= i - j < window if causal else jnp.abs(i - j) <= window
    return near & (segments_RQ[:, :, None] == segments_RS[:, None, :])


def _dense(q_RSNH, k_RSKH, v_RSKH, segments_RS, causal, window):
    """All scores of a row at once; of all rows, but on a CPU, whose caches hold those of one row."""
    i = jnp.arange(q_RSNH.shape[1])

    @jax.checkpoint  # kept for the backward pass, the scores would outweigh every other activation
    def attend_rows(q_RSNH, k_RSKH, v_RSKH, segments_RS):
        return _attend_rows(q_RSNH, k_RSKH, v_RSKH, visible(segments_RS, segments_RS, i, i, causal, window))

    rows = (q_RSNH, k_RSKH, v_RSKH, segments_RS)
    if jax.default_backend() != "cpu":
        return attend_rows(*rows)
    return jax.lax.map(lambda row: attend_rows(*(x[None] for x in row))[0], rows)


def _in_turns(q_RSNH, k_RSKH, v_RSKH, segments_RS, causal, window):
    """QUERIES queries a turn, against the keys they can see."""
    width = q_RSNH.shape[1]
    reach = min(width, QUERIES + window - 1) if causal and window is not None else width

    @jax.checkpoint
    def turn(first):
        start = jnp.clip(first + QUERIES - reach, 0, width - reach)
        queries = lambda x: jax.lax.dynamic_slice_in_dim(x, first, QUERIES, axis=1)
        keys = lambda x: jax.lax.dynamic_slice_in_dim(x, start, reach, axis=1)
        i, j = first + jnp.arange(QUERIES), start + jnp.arange(reach)
        seen = visible(queries(segments_RS), keys(segments_RS), i, j, causal, window)
        return _attend_rows(queries(q_RSNH), keys(k_RSKH), keys(v_RSKH), seen)

    out = jax.lax.map(turn, jnp.arange(0, width, QUERIES))
    return jnp.moveaxis(out, 0, 1).reshape(q_RSNH.shape)


def _attend_rows(q_RQNH, k_RSKH, v_RSKH, visible_RQS):
    R, Q, N, H = q_RQNH.shape
    K = k_RSKH.shape[2]
    precision = jax.lax.Precision.HIGHEST if q_RQNH.dtype == jnp.float32 else None
    q_RQKGH = q_RQNH.reshape(R, Q, K, N // K, H)
    scores = jnp.einsum(
        "RQKGH,RSKH->RKGQS",
        q_RQKGH,
        k_RSKH,
        precision=precision,
        preferred_element_type=jnp.float32,
    )
    scores = jnp.where(visible_RQS[:, None, None], scores * H**-0.5, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v_RSKH.dtype)
    out = jnp.einsum(
        "RKGQS,RSKH->RQKGH",
        weights,
        v_RSKH,
        precision=precision,
        preferred_element_type=jnp.float32,
    )
    return out.reshape(R, Q, N, H).astype(q_RQNH.dtype)
