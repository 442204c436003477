"""What every transformer here is made of: dropout by token, LayerNorm, the scan over stacked layers.

Shapes: T tokens of a bin, N of them that are read, D model.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from e5jax.projection import KEEP_NAMED


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dropout:
    """Rates of dropout."""

    adapters: float
    """Of what adapters see; the base sees no dropout of this kind."""
    hidden: float
    """Of what the embeddings and each sublayer hand on (BERT's hidden_dropout_prob; what SimCSE needs)."""


NO_DROPOUT = Dropout(adapters=0.0, hidden=0.0)
SITES = 4  # inputs of a layer that adapters see, and as many places for the other kind


def drop_tokens(x: jax.Array, rate: float, keys_T: jax.Array) -> jax.Array:
    """Zero each element of token t with probability `rate`, drawn from that token's own key."""
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(keys_T)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Noise:
    """Dropout inside one layer."""

    rates: Dropout
    keys_T: jax.Array | None
    """One key a token; None: no dropout."""
    layer: jax.Array | int

    def adapters(self, x: jax.Array, site: int) -> jax.Array:
        """What the adapters see of the layer's `site`-th input."""
        return self._drop(x, self.rates.adapters, site)

    def hidden(self, x: jax.Array, site: int) -> jax.Array:
        """What the `site`-th sublayer hands on."""
        return self._drop(x, self.rates.hidden, SITES + site)

    def at(self, read_N: jax.Array) -> "Noise":
        """Of these tokens alone."""
        return dataclasses.replace(self, keys_T=None if self.keys_T is None else self.keys_T[read_N])

    def _drop(self, x, rate, site):
        if self.keys_T is None or rate == 0:
            return x
        keys_T = jax.vmap(lambda key: jax.random.fold_in(key, 2 * SITES * self.layer + site))(self.keys_T)
        return drop_tokens(x, rate, keys_T)


class LayerNorm(nnx.Module):
    """(x - mean) / deviation · scale + shift over the last axis, statistics in f32."""

    def __init__(self, dim: int, eps: float, dtype: jnp.dtype):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones(dim, dtype), axes=(None,))
        self.shift = nnx.Param(jnp.zeros(dim, dtype), axes=(None,))

    def __call__(self, x: jax.Array) -> jax.Array:
        return standardized(x, self.eps, self.scale[...], self.shift[...])


def standardized(x: jax.Array, eps: float, scale: jax.Array, shift: jax.Array) -> jax.Array:
    """Layer normalisation (arXiv 1607.06450) in f32 -> x's dtype."""
    y = x.astype(jnp.float32)
    y -= jnp.mean(y, axis=-1, keepdims=True)
    y *= jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + eps)
    return (y * scale.astype(jnp.float32) + shift.astype(jnp.float32)).astype(x.dtype)


def gelu(x: jax.Array) -> jax.Array:
    """x Φ(x) (arXiv 1606.08415) in f32 -> x's dtype; by erf, which takes a CPU half the time of erfc in `jax.nn`'s."""
    y = x.astype(jnp.float32)
    return (0.5 * y * (1 + jax.lax.erf(y * math.sqrt(0.5)))).astype(x.dtype)


def stacked(make: Callable[[nnx.Rngs], nnx.Module], layers: int, *, rngs: nnx.Rngs) -> nnx.Module:
    """So many layers of one kind, each with weights of its own, stacked in front for `scan`."""
    return jax.vmap(lambda key: make(nnx.Rngs(key)))(jax.random.split(rngs.params(), layers))


def layer_of(blocks: nnx.Module, index: jax.Array | int) -> nnx.Module:
    """One of the stacked layers."""
    return jax.tree.map(lambda w: jax.lax.dynamic_index_in_dim(w, index, keepdims=False), blocks)


def scan(
    apply: Callable, blocks: nnx.Module, layers: int, x_TD: jax.Array, remat: bool, read_N: jax.Array | None
) -> jax.Array:
    """`apply(block, x_TD, index, read_N) -> x_TD`, layer after layer -> [T, D], or [N, D] of the tokens `read_N`.

    Only the last layer is told which tokens are read. For the backward pass a layer keeps the results of its products
    and recomputes the rest, which is cheap; with `remat` it keeps its input alone.
    """
    policy = jax.checkpoint_policies.nothing_saveable if remat else KEEP_NAMED

    # Weights are looked up rather than scanned over: a scan over all but the last would copy them first.
    def layer(x_TD, index, read_N):
        return apply(layer_of(blocks, index), x_TD, index, read_N)

    def body(x_TD, index):
        return jax.checkpoint(layer, prevent_cse=False, policy=policy)(x_TD, index, None), None

    # Tied to x, or JAX takes the lookups, the same in every chunk, out of a loop over chunks: a copy of all weights.
    index_L, x_TD = jax.lax.optimization_barrier((jnp.arange(layers), x_TD))
    if read_N is None:
        return jax.lax.scan(body, x_TD, index_L)[0]
    if layers > 1:
        x_TD, _ = jax.lax.scan(body, x_TD, index_L[:-1])
    return jax.checkpoint(layer, policy=policy)(x_TD, index_L[-1], read_N)
