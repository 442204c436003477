"""Low-rank adapters (LoRA, arXiv 2106.09685): y = x W + (alpha / rank) (x A) B, with W frozen.

The adapter stands beside the projection and is never merged while training, so no gradient of W's shape exists.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from e5jax.errors import UserError
from e5jax.projection import Projection, dot


class Adapter(nnx.Module):
    """x -> scale · (x A) B for the einsum of the projection it hangs on; A and B are f32."""

    def __init__(self, projection: Projection, rank: int, scale: float, *, rngs: nnx.Rngs):
        operands, out = projection.eq.split("->")
        xs, ws = operands.split(",")
        inner = [letter for letter in ws if letter in xs]  # contracted: they lead in every weight here
        kept = "".join(letter for letter in xs if letter not in inner)
        n = len(inner)
        shape, axes = projection.w.shape[-len(ws) :], projection.w.axes
        self.down = f"{xs},{''.join(inner)}r->{kept}r"
        self.up = f"{kept}r,r{ws[n:]}->{out}"
        self.scale = scale
        bound = math.prod(shape[:n]) ** -0.5  # PEFT's kaiming_uniform(a=√5)
        a = jax.random.uniform(rngs.params(), (*shape[:n], rank), minval=-bound, maxval=bound)
        self.a = nnx.LoRAParam(a, axes=(*axes[:n], "rank"))
        self.b = nnx.LoRAParam(jnp.zeros((rank, *shape[n:])), axes=("rank", *axes[n:]))

    def widened(self, low: jax.Array) -> jax.Array:
        """scale · (x A) B, given x A."""
        return self.scale * dot(self.up, self.b.axes, low, self.b[...])

    def delta(self) -> jax.Array:
        """scale · A B, of the weight's shape, in f32; layers may be stacked in front."""

        def one(a, b):
            return self.scale * jnp.tensordot(a, b, axes=1, precision=jax.lax.Precision.HIGHEST)

        stacked = self.a[...].ndim > len(self.a.axes)
        return (jax.vmap(one) if stacked else one)(self.a[...], self.b[...])


def projections(layers: nnx.Module) -> dict[str, Projection]:
    """The projections of a block by name."""
    return {name: p for name, p in vars(layers).items() if isinstance(p, Projection)}


def adapt(model: nnx.Module, rank: int, alpha: float, targets: Sequence[str], key: jax.Array):
    """Hang a fresh adapter (B = 0: it changes nothing yet) on every target projection of every layer.

    Raises UserError for a target that names no projection.
    """
    known = projections(model.layers)
    check_targets(targets, known)
    for target, target_key in zip(targets, jax.random.split(key, len(targets)), strict=True):
        projection = known[target]

        def make(k, projection=projection):
            return Adapter(projection, rank, alpha / rank, rngs=nnx.Rngs(k))

        projection.adapter = jax.vmap(make)(jax.random.split(target_key, projection.w.shape[0]))
    return model


def check_targets(targets: Sequence[str], known) -> None:
    """UserError for targets that name no projection, or for none at all."""
    unknown = [t for t in targets if t not in known]
    if unknown or not targets:
        raise UserError(f"lora.targets {unknown or '()'} name no projection; choose from {', '.join(known)}")


def merge(model: nnx.Module):
    """Every adapter added into its weight (f32, then the weight's dtype) and taken off."""
    for projection in projections(model.layers).values():
        if projection.adapter is not None:
            merged = projection.w[...].astype(jnp.float32) + projection.adapter.delta()
            projection.w[...] = merged.astype(projection.w.dtype)
            projection.adapter = None
    return model
