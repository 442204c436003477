"""How much work a step is, and how much the devices could do: the two sides of "utilisation"."""

import functools
import math
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxprs_in_params
from jax.interpreters import partial_eval

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


@functools.cache
def _measured_flops(dtype):
    size, rounds = 1024, 5
    x = jnp.ones((size, size), dtype)
    product = jax.jit(lambda x: jnp.dot(x, x, preferred_element_type=jnp.float32))
    product(x).block_until_ready()
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        product(x).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


def executed(traced: ClosedJaxpr) -> int:
    """FLOPs of all matrix products of a trace, but for those that no output needs, which the compiler drops too.

    Of a branch the one with most work counts, so the spare chunks of a batch count as if they were used. Raises
    ValueError for a product in a loop whose turns are not known.
    """
    return _executed(partial_eval.dce_jaxpr(traced.jaxpr, used_outputs=True)[0])


def _executed(jaxpr: Jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            left = equation.invars[0].aval.shape
            contracted = equation.params["dimension_numbers"][0][0]
            total += 2 * equation.outvars[0].aval.size * math.prod(left[axis] for axis in contracted)
            continue
        inside = [_executed(inner) for inner in jaxprs_in_params(equation.params)]
        if equation.primitive.name == "cond":
            total += max(inside)
        elif equation.primitive.name == "scan":
            total += equation.params["length"] * sum(inside)
        elif equation.primitive.name == "while" and any(inside):
            raise ValueError("a product in a loop whose turns are not known")
        else:
            total += sum(inside)
    return total
