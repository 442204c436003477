"""Exact search by inner product.

Products of bfloat16 cost about 0.6 of float32's on a CPU that has them, and a TPU makes six for one in full float32. So
they draw up a shortlist, which is scored again in float32. Where a bound on the rounding does not prove that everything
left out scores lower than the answer, those queries are scored in float32 against every vector instead.

Shapes: Q queries, D components, K results asked for; T vectors of a tile of the corpus, B queries of a block, C vectors
on a shortlist; a row of scores is cut into G buckets of W.
"""

import math
import operator
from collections import deque
from collections.abc import Iterable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from e5jax.errors import UserError


TILE_VECTORS = 1 << 17
TILE_COMPONENTS = 1 << 27  # 512 MiB of float32
BLOCK = 256  # queries scored at once: 128 MiB of scores with a whole tile
RESCORED = 1 << 11  # vectors of shortlists gathered at once
LONGEST = 1e19  # a vector's norm: its square is still a float32

Vectors = np.ndarray | jax.Array


def top_k(queries: Vectors, corpus: Vectors | Iterable[Vectors], k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k vectors of largest inner product with each query -> (scores float32 [Q, k] descending, ids int64 [Q, k]).

    `queries` [Q, D]; `corpus` [N, D], or its shards [n, D] one after another, read once. NumPy arrays, memory maps or
    JAX arrays of float32, bfloat16 or float16. Scores are sums in float32 of products in float32, equal scores stand by
    id: the first k of a stable sort of all N. Ids count the vectors of the corpus from 0; N < k gives N columns.

    The corpus goes to this process's devices in turn, a tile at a time (131,072 vectors or 512 MiB of float32, the
    smaller); a device holds two tiles, half of one in bfloat16, and 128 MiB of scores. Shards of one length compile
    once. Raises UserError for other shapes and dtypes, k < 1, and vectors that are not finite or longer than 1e19.
    """
    k = operator.index(k)
    if k < 1:
        raise UserError(f"k is {k}: ask for 1 or more")
    _check("queries", queries)
    count, dim = queries.shape
    best = np.zeros((count, 0 if count else k), np.float32), np.zeros((count, 0 if count else k), np.int64)
    if not count:
        return best
    queries = np.asarray(queries, np.float32)
    _refuse_not_finite("queries", queries, 0)
    devices = jax.local_devices()
    blocks = [jax.device_put(_blocks(queries), device) for device in devices]
    under_way = deque()
    for turn, (first, tile) in enumerate(_tiles([corpus] if hasattr(corpus, "ndim") else corpus, dim, len(devices))):
        which = turn % len(devices)
        found = _search(blocks[which], jax.device_put(tile, devices[which]), min(k, len(tile)))
        under_way.append((first, tile, found))
        if len(under_way) > len(devices):  # a tile loads while every device is at work on one
            best = _merge(best, *under_way.popleft(), k)
    for done in under_way:
        best = _merge(best, *done, k)
    return best


def _check(name, vectors):
    if getattr(vectors, "ndim", None) != 2:
        raise UserError(f"{name}: {np.shape(vectors)} is not the shape of vectors: give an array [vectors, components]")
    if vectors.dtype.name not in ("float32", "bfloat16", "float16"):
        raise UserError(f"{name}: {vectors.dtype} is not searched: give float32 (.astype), bfloat16 or float16")


def _refuse_not_finite(name, vectors, first):
    norms = np.linalg.norm(np.asarray(vectors, np.float64), axis=1)
    if len(bad := np.flatnonzero(~(norms <= LONGEST))):
        raise UserError(f"{name}: vector {first + bad[0]} holds NaN or infinity, or is longer than {LONGEST:g}")


def _blocks(queries_QD: np.ndarray) -> np.ndarray:
    """[Q, D] -> [blocks, B, D] of equal size; the last query fills them up."""
    count = len(queries_QD)
    blocks = -(-count // BLOCK)
    size = -(-count // blocks)
    return np.pad(queries_QD, ((0, blocks * size - count), (0, 0)), mode="edge").reshape(blocks, size, -1)


def _tiles(shards: Iterable[Vectors], dim: int, devices: int) -> Iterator[tuple[int, Vectors]]:
    """-> (id of its first vector, tile); a shard has a tile for every device, or as many as its size asks for."""
    first = 0
    for number, shard in enumerate(shards):
        _check(f"corpus, shard {number}", shard)
        if shard.shape[1] != dim:
            raise UserError(f"corpus, shard {number}: {shard.shape[1]} components a vector, the queries have {dim}")
        rows = max(1, min(TILE_VECTORS, TILE_COMPONENTS // dim, -(-len(shard) // devices)))
        for start in range(0, len(shard), rows):
            # The whole of a JAX array is not sliced: that would copy it.
            yield first + start, shard if rows == len(shard) else shard[start : start + rows]
        first += len(shard)


def _merge(best, first, tile, found, k):
    """The best of earlier tiles and what `_search` found in one -> the best of both."""
    scores, rows, finite = (np.asarray(x) for x in found)
    if not finite:
        _refuse_not_finite("corpus", tile, first)
    scores, rows = (x.reshape(-1, x.shape[-1])[: len(best[0])] for x in (scores, rows))
    scores = np.concatenate([best[0], scores], 1)
    ids = np.concatenate([best[1], first + rows.astype(np.int64)], 1)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(ids, order, 1)


@partial(jax.jit, static_argnums=2)
def _search(query_NBD: jax.Array, tile_TD: jax.Array, k: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """N blocks of queries -> (scores [N, B, K], their rows in the tile [N, B, K], whether the tile is finite)."""
    low_TD, norm = tile_TD.astype(jnp.bfloat16), _norm(tile_TD).max()

    def exact(query_BD):
        return _largest(_scores(query_BD, tile_TD.astype(jnp.float32)), k)

    def shortlisted(query_BD):
        rough_BC, row_BC = _largest(_scores(query_BD.astype(jnp.bfloat16), low_TD), shortlist)
        row_BC = lax.sort(row_BC)  # so that equal scores stay in the order of the corpus
        best_BK, at_BK = lax.top_k(_rescore(query_BD, row_BC, tile_TD), k)
        # min, not [:, -1]: with a slice of its values XLA no longer knows a top_k on CPU and sorts the whole row.
        beyond_B = rough_BC.min(1) + _rounding(query_BD, norm)
        return lax.cond(
            jnp.all(beyond_B < best_BK.min(1)),
            lambda: (best_BK, jnp.take_along_axis(row_BC, at_BK, 1)),
            lambda: exact(query_BD),
        )

    # A multiple of 8: in the remainder of a vectorised product equal vectors may differ in their last bit.
    shortlist = -(-(2 * k + 64) // 8) * 8
    worthwhile = len(tile_TD) >= 8 * shortlist
    best_NBK, row_NBK = lax.map(shortlisted if worthwhile else exact, query_NBD)
    return best_NBK, row_NBK, norm <= LONGEST


def _norm(x_TD):
    """The norm of each vector, or just above it: squares too small for float32 are made up for."""
    square_T = jnp.einsum(
        "TD,TD->T",
        x_TD,
        x_TD,
        precision=lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
    return jnp.sqrt(square_T + x_TD.shape[1] * jnp.finfo(jnp.float32).tiny)


def _rounding(query_BD, norm):
    """How far a rough score may lie below the true one, no vector being longer than `norm` -> [B].

    |q·c - q'·c'| <= |q - q'||c| + |q'||c - c'|, where q' and c' are the vectors in bfloat16.
    """
    # Not astype there and back: XLA may leave out such a pair of conversions, and the query would seem exact.
    low_BD = lax.reduce_precision(query_BD, exponent_bits=8, mantissa_bits=7)
    # |c - c'| <= 2^-8 |c|. It is about half of that, but to measure it costs more than the longer shortlist does.
    rounded_B = (_norm(query_BD - low_BD) + _norm(low_BD) / 256) * norm
    dim = query_BD.shape[1]
    float32 = jnp.finfo(jnp.float32)
    # Scores and norms are float32 sums of D terms, in any order, perhaps truncated, their tiniest terms perhaps lost.
    summed_B = 4 * dim * float32.eps * _norm(query_BD) * norm
    return rounded_B + summed_B + dim * float32.tiny * (1 + _norm(query_BD) + norm)


def _scores(query_BD, vector_TD):
    """Inner products, float32 [B, T]; bfloat16's products are exact in float32."""
    return jnp.einsum(
        "BD,TD->BT",
        query_BD,
        vector_TD,
        precision=lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )


def _rescore(query_BD, row_BC, tile_TD):
    """float32 inner products of each query with its own rows of the tile -> [B, C]."""

    def one(query_D, row_C):
        vector_CD = tile_TD.at[row_C].get(mode="promise_in_bounds").astype(jnp.float32)
        return jnp.einsum("CD,D->C", vector_CD, query_D, precision=lax.Precision.HIGHEST)

    together = max(1, RESCORED // row_BC.shape[1])
    return lax.map(lambda x: one(*x), (query_BD, row_BC), batch_size=together)


def _largest(score_BT, k):
    """The k largest of each row, descending, equal ones by position -> (scores [B, k], positions [B, k]).

    The k best lie in the k buckets of the highest maxima, so two short selections of about sqrt(k T) do; `lax.top_k` of
    a long row sorts all of it on some backends.
    """
    count, length = score_BT.shape
    width = 1 << round(math.log2(length / k) / 2)
    if width == 1:
        return lax.top_k(score_BT, k)
    whole = length // width * width
    score_BGW = score_BT[:, :whole].reshape(count, -1, width)
    _, bucket_Bk = lax.top_k(score_BGW.max(2), min(k, whole // width))
    bucket_Bk = lax.sort(bucket_Bk)
    join = lambda inside, tail: jnp.concatenate([inside.reshape(count, -1), tail], 1)
    tail = jnp.broadcast_to(jnp.arange(whole, length), (count, length - whole))
    candidates = join(jnp.take_along_axis(score_BGW, bucket_Bk[:, :, None], 1), score_BT[:, whole:])
    position = join(bucket_Bk[:, :, None] * width + jnp.arange(width), tail)
    best_Bk, at_Bk = lax.top_k(candidates, k)
    return best_Bk, jnp.take_along_axis(position, at_Bk, 1)
