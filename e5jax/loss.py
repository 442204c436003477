"""Encode every text of the global batch: what the contrastive step spends its time on; contrast.py does the rest.

Shapes: C chunks, S shards, T tokens of a bin, N slots of a bin, D model.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from e5jax.architecture import Model
from e5jax.attention import Rows
from e5jax.layers import NO_DROPOUT, Dropout
from e5jax.packing import Bins
from e5jax.pooling import unit
from e5jax.sharding import constrain, over_shards


def encode(
    model: Model,
    bins: Bins,
    rows: Rows,
    *,
    dtype: jnp.dtype,
    kept: int,
    remat: bool,
    dropout: Dropout,
    dropout_key: jax.Array | None,
) -> jax.Array:
    """Unit vectors of every slot of every bin -> [C · S · N, D] in f32; empty slots hold nothing of meaning.

    The first `kept` chunks keep their activations for the backward pass, as a single one does. Of the others nothing is
    kept but their vectors, and each is encoded again (GradCache, arXiv 2101.06983): the gradient is the exact one of
    the whole batch. Spare ones among these are skipped, forward and backward. The dropout mask of a token is a function
    of (key, row of its text in the global batch, position), never of chunk or shard.
    """
    graphdef, weights = nnx.split(model)
    leaves, structure = jax.tree.flatten(weights)

    def one_bin(model, key, tokens_T, positions_T, segments_T, last_N, texts_N):
        keys_T = None
        if key is not None and dropout != NO_DROPOUT:
            fold = jax.random.fold_in
            keys_T = jax.vmap(lambda text, position: fold(fold(key, text), position))(
                texts_N[segments_T - 1], positions_T
            )
        read_N = model.pooling.read(positions_T, last_N)
        x = model(
            tokens_T,
            positions_T,
            segments_T,
            rows,
            read_N=read_N,
            dtype=dtype,
            remat=remat,
            dropout=dropout,
            dropout_keys_T=keys_T,
        )
        return unit(x if read_N is not None else model.pooling(x, positions_T, segments_T, last_N))

    def one_chunk(leaves, key, arrays):
        model = nnx.merge(graphdef, jax.tree.unflatten(structure, leaves))
        return over_shards(partial(one_bin, model, key))(*arrays)

    arrays = (bins.tokens_CST, bins.positions_CST, bins.segments_CST, bins.last_CSN, bins.texts_CSN)
    chunks = len(bins.used_C)
    kept = max(kept, chunks == 1)
    parts = []
    if kept == 1:  # without a loop there is nothing to stack
        parts.append(one_chunk(leaves, dropout_key, [x[0] for x in arrays])[None])
    elif kept:
        parts.append(jax.lax.map(partial(one_chunk, leaves, dropout_key), [x[:kept] for x in arrays]))
    if kept < chunks:
        run = recomputed_or_skipped(one_chunk)
        others = bins.used_C[kept:], [x[kept:] for x in arrays]
        parts.append(jax.lax.map(lambda chunk: run(leaves, dropout_key, chunk[1], chunk[0]), others))
    v_CSND = jnp.concatenate(parts)
    # The one gather of embeddings: every device needs every passage.
    return constrain(v_CSND.reshape(-1, v_CSND.shape[-1]), None, None)


def recomputed_or_skipped(f: Callable) -> Callable:
    """`f(leaves, key, arrays)` -> `run(leaves, key, arrays, used)`: zeros where not used; keeps only its arguments.

    By hand rather than `cond(checkpoint(f))`, whose residuals in a loop are the weights once more for each turn.
    """

    @jax.custom_vjp
    def run(leaves, key, arrays, used):
        out = jax.eval_shape(f, leaves, key, arrays)
        empty = lambda *_: constrain(jnp.zeros(out.shape, out.dtype), "shards", None, None)
        return jax.lax.cond(used, f, empty, leaves, key, arrays)

    def forward(leaves, key, arrays, used):
        trained = {i: leaf.value for i, leaf in enumerate(leaves) if leaf.perturbed}
        frozen = {i: leaf.value for i, leaf in enumerate(leaves) if not leaf.perturbed}
        key, arrays, used = jax.tree.map(lambda x: x.value, (key, arrays, used))
        return run([leaf.value for leaf in leaves], key, arrays, used), (trained, frozen, key, arrays, used)

    def backward(residuals, g):
        trained, frozen, key, arrays, used = residuals

        def again(trained):
            all_leaves = lambda t: [leaf for _, leaf in sorted({**t, **frozen}.items())]
            _, pull_back = jax.vjp(lambda t: f(all_leaves(t), key, arrays), trained)
            return pull_back(g)[0]

        zeros = lambda trained: jax.tree.map(jnp.zeros_like, trained)
        grads = jax.lax.cond(used, again, zeros, trained)
        return [grads.get(i) for i in range(len(trained) + len(frozen))], None, None, None

    run.defvjp(forward, backward, symbolic_zeros=True)
    return run
