"""A projection: one weight, one einsum, and beside it, perhaps, an adapter.

Letters of the einsums are those of the shape suffixes: T tokens of a bin, D model, N query heads, K key-value heads,
H head size, F hidden size of the MLP, r rank of an adapter.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from e5jax.sharding import gathered


KEPT = "product"
"""Name of what the backward pass keeps where it recomputes only what is cheap."""
KEEP_NAMED = jax.checkpoint_policies.save_only_these_names(KEPT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def dot(eq: str, axes: tuple[str | None, ...], x: jax.Array, w: jax.Array) -> jax.Array:
    """`einsum(eq, x, w)` accumulated in f32, in x's dtype; `axes` names those of the weight.

    It has its own backward rule because
    - the transpose of a mixed product would be f32 × bf16 (slow on every backend), so the cotangent is cast first;
    - a frozen weight gets no gradient, not even one that XLA has to remove;
    - what is kept is the weight as it lies, cast and gathered anew: kept gathered, a scan over layers would stack a
      second, unsharded copy of the base.
    """
    return _einsum(eq, x, _ready(w, axes, x.dtype))


def _ready(w, axes, dtype):
    return gathered(w.astype(dtype), axes)


def _einsum(eq, x, w):
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None  # no TF32 behind f32's back
    y = jnp.einsum(eq, x, w, precision=precision, preferred_element_type=jnp.float32)
    return y.astype(x.dtype)


def _dot_forward(eq, axes, x, w):
    # A residual is kept only for the gradient that somebody asked for.
    residuals = (x.value if w.perturbed else None, w.value if x.perturbed else None)
    residuals += (jnp.zeros(0, w.value.dtype),)  # only its dtype matters
    return _einsum(eq, x.value, _ready(w.value, axes, x.value.dtype)), residuals


def _dot_backward(eq, axes, residuals, g):
    x, w, like_w = residuals
    operands, out = eq.split("->")
    xs, ws = operands.split(",")
    if isinstance(g, jax.custom_derivatives.SymbolicZero):
        return None, None
    dx = None if w is None else _einsum(f"{out},{ws}->{xs}", g, _ready(w, axes, g.dtype))
    dw = None if x is None else _weight_gradient(xs, out, ws, x, g).astype(like_w.dtype)
    return dx, dw


def _weight_gradient(xs, out, ws, x, g):
    """Two matrices, the narrower one first: a CPU transposes that one, and has no bf16 product of larger arrays."""
    summed = sum(letter in out for letter in xs)  # the tokens: they lead in x and g
    x_, g_ = (y.reshape(math.prod(y.shape[:summed]), -1) for y in (x, g))
    w = _einsum("TX,TG->XG", x_, g_) if x_.shape[1] <= g_.shape[1] else _einsum("TG,TX->GX", g_, x_).T
    return w.reshape(*x.shape[summed:], *g.shape[summed:])


dot.defvjp(_dot_forward, _dot_backward, symbolic_zeros=True)


class Projection(nnx.Module):
    """`einsum(eq, x, w)`, perhaps plus a bias; where an adapter hangs on it, the adapter's product is added."""

    def __init__(self, eq: str, *dims: tuple[str, int], fan_in: int, bias: bool, dtype: jnp.dtype, rngs: nnx.Rngs):
        axes, shape = zip(*dims, strict=True)
        self.eq = eq
        w = jax.random.normal(rngs.params(), shape, jnp.float32) / math.sqrt(fan_in)
        self.w = nnx.Param(w.astype(dtype), axes=axes)
        xs, ws = eq.split("->")[0].split(",")
        self.inputs = sum(letter in xs for letter in ws)  # they lead in every weight here
        # Flat, as files have it; only what is split over the devices in the output is so here.
        axis = axes[self.inputs] if axes[self.inputs] != "embed" else None
        self.b = nnx.Param(jnp.zeros(math.prod(shape[self.inputs :]), dtype), axes=(axis,)) if bias else nnx.data(None)
        self.adapter = nnx.data(None)

    def __call__(self, x: jax.Array, x_adapter: jax.Array) -> jax.Array:
        """See `projected`."""
        return projected([self], x, x_adapter)[0]

    def plain(self, x: jax.Array) -> jax.Array:
        """Without the adapter."""
        w = self.w[...]
        y = dot(self.eq, self.w.axes, x, w)
        return y if self.b is None else y + self.b[...].astype(x.dtype).reshape(w.shape[self.inputs :])


def projected(projections: Sequence[Projection], x: jax.Array, x_adapters: jax.Array) -> list[jax.Array]:
    """What projections make of one input; `x_adapters` is what their adapters see: x, with dropout while training.

    The adapters' first products are one product: alone they are too narrow to keep any device busy.
    """
    adapters = [p.adapter for p in projections if p.adapter is not None]
    lows = iter(())
    if adapters:
        a = jnp.concatenate([adapter.a[...] for adapter in adapters], axis=-1)
        low = checkpoint_name(dot(adapters[0].down, adapters[0].a.axes, x_adapters, a), KEPT)
        lows = iter(jnp.split(low, len(adapters), axis=-1))
    outputs = []
    for p in projections:
        y = p.plain(x)
        outputs.append(checkpoint_name(y if p.adapter is None else y + p.adapter.widened(next(lows)), KEPT))
    return outputs
