"""Attention over one packed bin.

A bin is rows of a few fixed widths laid end to end; each text lies whole in one row, so attention is a reshape of the
bin into rows and a mask inside each row: no gather, and cost linear in the bin.

Shapes: T tokens of the bin, R rows of one width, Q and S query and key positions in a row, N query heads, K key-value
heads, G = N / K query heads a key-value head, M = G · Q queries of a key-value head, H head size, P tokens of a prefix
that all texts share.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from e5jax import kernels
from e5jax.projection import KEEP_NAMED, KEPT


Rows = tuple[tuple[int, int], ...]  # ((width, how many), ...), the layout of every bin
PARTS = 8  # of a row, where causal: the queries of each against the keys up to its end, 9 of 16 scores
BLOCK = 128  # queries of such a part, at least
DENSE = 2048  # the widest row whose scores are computed at once
QUERIES = 256  # positions a turn in wider ones: memory for scores is linear in the width


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Before:
    """A prefix that every text goes on from."""

    k_PKH: jax.Array
    v_PKH: jax.Array
    used: jax.Array
    """Only so many of the P tokens are any."""
    positions_T: jax.Array
    """Of the bin's tokens, counted from the first token of the prefix."""

    def seen(self, start: int, width: int, count: int, window: int | None) -> "RowPrefix":
        """Keys, values, and which of them is seen from each token of the `count` rows from bin token `start`."""
        i_RQ = self.positions_T[start : start + width * count].reshape(count, width)
        j_P = jnp.arange(len(self.k_PKH))
        seen_RQP = jnp.broadcast_to(j_P < self.used, (count, width, len(j_P)))
        if window is not None:
            seen_RQP &= i_RQ[:, :, None] - j_P < window
        return self.k_PKH, self.v_PKH, seen_RQP


RowPrefix = tuple[jax.Array, jax.Array, jax.Array]  # k_PKH, v_PKH, seen_RQP


def attend(
    q_TNH: jax.Array,
    k_TKH: jax.Array,
    v_TKH: jax.Array,
    segments_T: jax.Array,
    rows: Rows,
    before: Before | None,
    causal: bool,
    window: int | None,
) -> jax.Array:
    """Softmax attention inside each text of the bin, and to what all have `before` them -> [T, N, H].

    `segments_T` numbers the text a token belongs to (0: padding). With a window W, key j is seen from query i when
    i − W < j ≤ i, as in Mistral (arXiv 2310.06825); where not causal, when |i − j| ≤ W, as transformers has it.
    """
    parts, start = [], 0
    for width, count in rows:
        stop = start + width * count
        q, k, v, segments = (
            x[start:stop].reshape(count, width, *x.shape[1:]) for x in (q_TNH, k_TKH, v_TKH, segments_T)
        )
        prefix = None if before is None else before.seen(start, width, count, window)
        if backend() == "tpu" and prefix is None and kernels.splash_fits(width, q.shape[-1]):
            out = kernels.splash(q, k, v, segments, causal, window, interpret=False)
        elif width <= DENSE or width % QUERIES:
            out = _dense(q, k, v, segments, prefix, causal, window)
        else:
            out = _in_turns(q, k, v, segments, prefix, causal, window)
        parts.append(out.reshape(width * count, *out.shape[2:]))
        start = stop
    return jnp.concatenate(parts)


def backend() -> str:
    """cpu, gpu or tpu: what attention is compiled for."""
    return jax.default_backend()


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


def _dense(q_RSNH, k_RSKH, v_RSKH, segments_RS, prefix: RowPrefix | None, causal, window):
    """A row at once; all rows at once, but on a CPU, whose caches hold the scores of one.

    Where causal, in blocks of queries, each against the keys up to its end.
    """
    width = q_RSNH.shape[1]
    block = max(BLOCK, width // PARTS) if causal else width
    i = jnp.arange(width)

    def attend_rows(q_RSNH, k_RSKH, v_RSKH, segments_RS, seen_RSP):
        outs = []
        for start in range(0, width, block):
            queries, keys = slice(start, start + block), slice(start + block)
            seen = visible(segments_RS[:, queries], segments_RS[:, keys], i[queries], i[keys], causal, window)
            before = prefix and (*prefix[:2], seen_RSP[:, queries])
            outs.append(_attend_rows(q_RSNH[:, queries], k_RSKH[:, keys], v_RSKH[:, keys], seen, before))
        return jnp.concatenate(outs, axis=1)

    rows = (q_RSNH, k_RSKH, v_RSKH, segments_RS, prefix and prefix[2])
    if backend() != "cpu":
        return attend_rows(*rows)
    return jax.lax.map(lambda row: attend_rows(*jax.tree.map(lambda x: x[None], row))[0], rows)


def _in_turns(q_RSNH, k_RSKH, v_RSKH, segments_RS, prefix: RowPrefix | None, causal, window):
    """QUERIES queries a turn, against the keys they can see; where causal, with those up to the end of their part."""
    width = q_RSNH.shape[1]
    of_window = width if window is None or not causal else min(width, QUERIES + window - 1)
    part = QUERIES * -(-width // (PARTS * QUERIES))
    if not causal or of_window <= part:
        part = width  # parts would change nothing

    def turn(first, reach, end):
        start = jnp.clip(first + QUERIES - reach, 0, end - reach)
        queries = lambda x: jax.lax.dynamic_slice_in_dim(x, first, QUERIES, axis=1)
        keys = lambda x: jax.lax.dynamic_slice_in_dim(x, start, reach, axis=1)
        i, j = first + jnp.arange(QUERIES), start + jnp.arange(reach)
        seen = visible(queries(segments_RS), keys(segments_RS), i, j, causal, window)
        before = prefix and (*prefix[:2], queries(prefix[2]))
        return _attend_rows(queries(q_RSNH), keys(k_RSKH), keys(v_RSKH), seen, before)

    outs = []
    for begin in range(0, width, part):
        end = min(begin + part, width)
        of_part = functools.partial(turn, reach=min(end, of_window), end=end)
        # Else the keys of every turn would be kept for the backward pass.
        outs.append(jax.lax.map(jax.checkpoint(of_part, policy=KEEP_NAMED), jnp.arange(begin, end, QUERIES)))
    return jnp.moveaxis(jnp.concatenate(outs), 0, 1).reshape(q_RSNH.shape)


def _attend_rows(q_RQNH, k_RSKH, v_RSKH, visible_RQS, prefix: RowPrefix | None):
    R, Q, N, H = q_RQNH.shape
    K = k_RSKH.shape[2]
    if prefix is not None:
        k_PKH, v_PKH, seen_RQP = prefix
        behind = lambda x_PKH, x_RSKH: jnp.concatenate([jnp.broadcast_to(x_PKH, (R, *x_PKH.shape)), x_RSKH], axis=1)
        k_RSKH, v_RSKH = behind(k_PKH, k_RSKH), behind(v_PKH, v_RSKH)
        visible_RQS = jnp.concatenate([seen_RQP, visible_RQS], axis=-1)
    q_RKMH = q_RQNH.reshape(R, Q, K, N // K, H).transpose(0, 2, 3, 1, 4).reshape(R, K, -1, H)
    out_RKMH = softmax_attention(q_RKMH, k_RSKH.swapaxes(1, 2), v_RSKH.swapaxes(1, 2), visible_RQS)
    return out_RKMH.reshape(R, K, N // K, Q, H).transpose(0, 3, 1, 2, 4).reshape(R, Q, N, H)


@jax.custom_vjp
def softmax_attention(q_RKMH: jax.Array, k_RKSH: jax.Array, v_RKSH: jax.Array, visible_RQS: jax.Array) -> jax.Array:
    """softmax(q k / √H) v over the visible keys -> [R, K, M, H] in q's dtype; products accumulate in f32.

    The M = G · Q queries of a key-value head are those of its first query head, then of its second …

    The backward rule is FlashAttention's (arXiv 2205.14135, algorithm 4): it needs no scores, which would outweigh
    every other activation, but the result and the logarithm of each query's sum; and it multiplies in the dtype of the
    operands, where a transposed product of f32 and bf16 would be slow on every backend. Heads come before queries and
    no product is of transposed scores, so nothing as large as scores is ever copied: on a CPU that is half of the time.
    """
    return _attention_forward(q_RKMH, k_RKSH, v_RKSH, visible_RQS)[0]


def _attention_forward(q_RKMH, k_RKSH, v_RKSH, visible_RQS):
    scores_RKMS = _scores(q_RKMH, k_RKSH, visible_RQS)
    highest_RKM1 = jnp.max(scores_RKMS, axis=-1, keepdims=True)
    weights_RKMS = jnp.exp(scores_RKMS - highest_RKM1)
    sums_RKM1 = jnp.sum(weights_RKMS, axis=-1, keepdims=True)
    out_RKMH = (_product(weights_RKMS.astype(v_RKSH.dtype), v_RKSH, 3, 2) / sums_RKM1).astype(q_RKMH.dtype)
    out_RKMH = checkpoint_name(out_RKMH, KEPT)
    logs_RKM1 = checkpoint_name(highest_RKM1 + jnp.log(sums_RKM1), KEPT)
    return out_RKMH, (q_RKMH, k_RKSH, v_RKSH, visible_RQS, out_RKMH, logs_RKM1)


def _attention_backward(residuals, g_RKMH):
    q_RKMH, k_RKSH, v_RKSH, visible_RQS, out_RKMH, logs_RKM1 = residuals
    dtype, scale = q_RKMH.dtype, q_RKMH.shape[-1] ** -0.5
    weights_RKMS = jnp.exp(_scores(q_RKMH, k_RKSH, visible_RQS) - logs_RKM1)
    # Σ weights · dweights of a query, as Σ out · dout.
    sums_RKM1 = jnp.sum(out_RKMH.astype(jnp.float32) * g_RKMH.astype(jnp.float32), axis=-1, keepdims=True)
    dscores_RKMS = (weights_RKMS * (_product(g_RKMH, v_RKSH, 3, 3) - sums_RKM1) * scale).astype(dtype)
    dq_RKMH = _product(dscores_RKMS, k_RKSH, 3, 2)
    dk_RKHS = _product(q_RKMH, dscores_RKMS, 2, 2)
    dv_RKHS = _product(g_RKMH, weights_RKMS.astype(dtype), 2, 2)
    turned = lambda x_RKHS: x_RKHS.swapaxes(2, 3).astype(dtype)
    return dq_RKMH.astype(dtype), turned(dk_RKHS), turned(dv_RKHS), None


softmax_attention.defvjp(_attention_forward, _attention_backward)


def _scores(q_RKMH, k_RKSH, visible_RQS):
    scores_RKMS = _product(q_RKMH, k_RKSH, 3, 3) * q_RKMH.shape[-1] ** -0.5
    R, K, M, S = scores_RKMS.shape
    by_head_RKGQS = scores_RKMS.reshape(R, K, -1, visible_RQS.shape[1], S)
    masked = jnp.where(visible_RQS[:, None, None], by_head_RKGQS, jnp.finfo(jnp.float32).min)
    return masked.reshape(R, K, M, S)


def _product(x, y, x_axis: int, y_axis: int):
    """Of every row and head, summed over one axis of each -> the remaining axis of x, then that of y, in f32."""
    dims = (((x_axis,), (y_axis,)), ((0, 1), (0, 1)))
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return jax.lax.dot_general(x, y, dims, precision=precision, preferred_element_type=jnp.float32)
