"""How much work a step is, and how much the devices could do: the two sides of "utilisation"."""

import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from e5jax.architecture import Architecture


# bf16 FLOP/s of one chip, dense, from the vendors' data sheets; the first name contained in device_kind counts.
PEAK = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "V100": 125e12,
    "TPU7x": 2307e12,
    "TPU v6": 918e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v4": 275e12,
}


def train_flops_per_token(cfg: Architecture, adapters_only: bool) -> int:
    """FLOPs a token costs without any recomputation: 4 a weight with frozen weights, 6 when all are trained."""
    return (4 if adapters_only else 6) * cfg.projection_weights


def peak_flops(devices: Sequence[jax.Device], dtype: jnp.dtype) -> float:
    """Peak FLOP/s of all devices together; for one that is not in the table (a CPU), that of a measured product."""
    kind = devices[0].device_kind
    for name, peak in PEAK.items():
        if name in kind:
            return peak * len(devices)
    return _measured_flops(dtype)


def _measured_flops(dtype, size=1024, rounds=5):
    x = jnp.ones((size, size), dtype)
    product = jax.jit(lambda x: jnp.dot(x, x, preferred_element_type=jnp.float32))
    product(x).block_until_ready()
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        product(x).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)
