"""AdamW with warm-up, linear decay and clipping: optax put together."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx


def learning_rate(peak_lr: float, warmup_steps: int, steps: int) -> optax.Schedule:
    """Linear from peak / warmup_steps at the first update to peak, then linear towards zero after the last."""

    def schedule(count):
        warm = (count + 1) / max(1, warmup_steps)
        decay = (steps - count) / max(1, steps - warmup_steps)
        return peak_lr * jnp.clip(jnp.minimum(warm, decay), 0.0, 1.0)

    return schedule


def adamw(
    schedule: optax.Schedule, *, b1: float, b2: float, weight_decay: float, clip_norm: float
) -> optax.GradientTransformation:
    """Clip by global norm, then AdamW; norms' scales are not decayed."""
    return optax.chain(
        optax.clip_by_global_norm(clip_norm),
        optax.adamw(schedule, b1=b1, b2=b2, weight_decay=weight_decay, mask=_is_matrix),
    )


def _is_matrix(params):
    return jax.tree.map(
        lambda v: v.replace(len(v.get_metadata()["axes"]) > 1),
        params,
        is_leaf=lambda x: isinstance(x, nnx.Variable),
    )
