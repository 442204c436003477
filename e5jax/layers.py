"""What every transformer here is made of: dropout by token, LayerNorm, the scan over stacked layers.

Shapes: T tokens of a bin, D model.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from e5jax.projection import KEPT


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


def droppers(rates: Dropout, keys_T: jax.Array | None, layer: jax.Array | int) -> tuple[Callable, Callable]:
    """-> (adapters, hidden): `f(x, i)` drops at the layer's i-th site of that kind. `keys_T` None: no dropout."""

    def at(rate, first):
        def drop(x, site):
            if keys_T is None or rate == 0:
                return x
            fold = jax.vmap(lambda key: jax.random.fold_in(key, 2 * SITES * layer + first + site))
            return drop_tokens(x, rate, fold(keys_T))

        return drop

    return at(rates.adapters, 0), at(rates.hidden, SITES)


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


def stacked(make: Callable[[nnx.Rngs], nnx.Module], layers: int, *, rngs: nnx.Rngs) -> nnx.Module:
    """So many layers of one kind, each with weights of its own, stacked in front for `scan`."""
    return jax.vmap(lambda key: make(nnx.Rngs(key)))(jax.random.split(rngs.params(), layers))


def scan(apply: Callable, blocks: nnx.Module, layers: int, x_TD: jax.Array, remat: bool) -> jax.Array:
    """`apply(block, x_TD, index) -> x_TD`, layer after layer.

    For the backward pass a layer keeps the results of its products and recomputes the rest, which is cheap; with
    `remat` it keeps its input alone.
    """

    def layer(x_TD, block_and_index):
        return apply(block_and_index[0], x_TD, block_and_index[1]), None

    policies = jax.checkpoint_policies
    policy = policies.nothing_saveable if remat else policies.save_only_these_names(KEPT)
    layer = jax.checkpoint(layer, prevent_cse=False, policy=policy)
    return jax.lax.scan(layer, x_TD, (blocks, jnp.arange(layers)))[0]
