"""From hidden states to one unit vector a text."""

import jax
import jax.numpy as jnp


def last_token(x_TD: jax.Array, last_N: jax.Array) -> jax.Array:
    """The hidden state at each text's last token, </s> (E5-Mistral §3.2) -> [N, D]."""
    return x_TD[last_N]


def unit(x_ND: jax.Array) -> jax.Array:
    """Rows scaled to length 1, in f32. A zero row stays zero and has gradient zero."""
    x_ND = x_ND.astype(jnp.float32)
    squares = jnp.sum(jnp.square(x_ND), axis=-1, keepdims=True)
    zero = squares < 1e-24
    return jnp.where(zero, 0.0, x_ND * jax.lax.rsqrt(jnp.where(zero, 1.0, squares)))
