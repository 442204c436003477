"""From the hidden states of a bin to one unit vector a text.

Shapes: T tokens of the bin, N slots (texts it can hold), D model; of the latent attention: L latents, A heads, H their
size, F hidden size of the MLP.
"""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx

from e5jax.layers import standardized
from e5jax.projection import dot


Kind = Literal["last", "mean", "weighted_mean", "cls", "latent"]
KINDS = get_args(Kind)
LATENTS, LATENT_HEADS = 512, 8  # NV-Embed (arXiv 2405.17428, section 3.1)


class HeadParam(nnx.LoRAParam):
    """Trained wherever adapters are, though the base is frozen."""


class Pooling(nnx.Module):
    """How a text's vector is read off its tokens.

    last            the hidden state of </s> (E5-Mistral, section 3.2)
    mean            the mean of all its tokens, special ones included, as sentence-transformers has it
    weighted_mean   weighted by position, 1 for the first token (SGPT, arXiv 2202.08904)
    cls             the hidden state of its first token
    latent          each token attends to trained latents, then the mean (NV-Embed); it starts out as the mean
    """

    def __init__(self, kind: Kind, dim: int, *, rngs: nnx.Rngs):
        self.kind = kind
        self.latent = LatentAttention(dim, rngs=rngs) if kind == "latent" else nnx.data(None)

    def read(self, positions_T: jax.Array, last_N: jax.Array) -> jax.Array | None:
        """The one token of each text whose state is its vector -> [N]; None where all tokens count."""
        tokens = {"last": lambda: last_N, "cls": lambda: last_N - positions_T[last_N]}
        return tokens[self.kind]() if self.kind in tokens else None

    def __call__(self, x_TD: jax.Array, positions_T: jax.Array, segments_T: jax.Array, last_N: jax.Array) -> jax.Array:
        """-> [N, D]; what an empty slot gets has no meaning."""
        if (read_N := self.read(positions_T, last_N)) is not None:
            return x_TD[read_N]
        if self.kind == "latent":
            x_TD = self.latent(x_TD)
        weights_T = positions_T + 1.0 if self.kind == "weighted_mean" else jnp.ones(len(x_TD), jnp.float32)
        return weighted_mean(x_TD, weights_T, segments_T, len(last_N))


def weighted_mean(x_TD: jax.Array, weights_T: jax.Array, segments_T: jax.Array, texts: int) -> jax.Array:
    """Mean of each text's tokens -> f32 [N, D]; texts are numbered from 1, and one without tokens is 0."""
    total = lambda x: jax.ops.segment_sum(x, segments_T, texts + 1)[1:]
    sums_ND = total(x_TD.astype(jnp.float32) * weights_T[:, None])
    return sums_ND / jnp.maximum(total(weights_T), 1e-9)[:, None]


class LatentAttention(nnx.Module):
    """Tokens attend to trained latents, then a small MLP, each added to its input (NV-Embed, section 3.1)."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        heads = LATENT_HEADS if dim % LATENT_HEADS == 0 else 1
        size = dim // heads

        def head(*shape, scale):
            return HeadParam(scale * jax.random.normal(rngs.params(), shape), axes=(None,) * len(shape))

        small = dim**-0.5
        self.latents = head(LATENTS, dim, scale=1.0)
        self.q = head(dim, heads, size, scale=small)
        self.k = head(dim, heads, size, scale=small)
        self.v = head(dim, heads, size, scale=small)
        self.o = head(heads, size, dim, scale=0.0)  # both begin at zero: nothing is changed yet
        self.up = head(dim, 4 * dim, scale=small)
        self.down = head(4 * dim, dim, scale=0.0)

    def __call__(self, x_TD: jax.Array) -> jax.Array:
        product = lambda eq, x, w: dot(eq, w.axes, x, w[...])
        latents_LD = normed(self.latents[...]).astype(x_TD.dtype)
        q_TAH = product("TD,DAH->TAH", normed(x_TD), self.q)
        k_LAH, v_LAH = (product("LD,DAH->LAH", latents_LD, w) for w in (self.k, self.v))
        scores = jnp.einsum("TAH,LAH->ATL", q_TAH, k_LAH, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(scores * q_TAH.shape[-1] ** -0.5, axis=-1).astype(x_TD.dtype)
        x_TD += product("TAH,AHD->TD", jnp.einsum("ATL,LAH->TAH", weights, v_LAH), self.o)
        return x_TD + product("TF,FD->TD", jax.nn.gelu(product("TD,DF->TF", normed(x_TD), self.up)), self.down)


def normed(x: jax.Array) -> jax.Array:
    """LayerNorm without weights."""
    return standardized(x, 1e-5, jnp.ones(x.shape[-1]), jnp.zeros(x.shape[-1]))


def unit(x_ND: jax.Array) -> jax.Array:
    """Rows scaled to length 1, in f32. A zero row stays zero and has gradient zero."""
    x_ND = x_ND.astype(jnp.float32)
    squares = jnp.sum(jnp.square(x_ND), axis=-1, keepdims=True)
    zero = squares < 1e-24
    return jnp.where(zero, 0.0, x_ND * jax.lax.rsqrt(jnp.where(zero, 1.0, squares)))
