"""Matrix FLOPs: what a traced program multiplies, and the least that its result needs."""

import math

from jax.extend.core import ClosedJaxpr, Jaxpr, jaxprs_in_params
from jax.interpreters import partial_eval

from e5jax.decoder import DecoderConfig


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


def least(cfg: DecoderConfig, tokens: int, texts: int, passes: int) -> int:
    """FLOPs of the base weights' products that cannot be left out, for the last token's vector of each text.

    `passes`: 1 forward; 2 with the gradient of the activations (adapters are trained, weights are not); 3 where the
    activations are not kept, too (GradCache). The last layer needs keys and values of all tokens, the rest of it only
    for the tokens that are read. Adapters and attention come on top.
    """
    layer = cfg.projection_weights // cfg.layers
    keys_values = 2 * cfg.dim * cfg.kv_heads * cfg.head_dim
    last = keys_values * tokens + (layer - keys_values) * texts
    return 2 * passes * ((cfg.layers - 1) * layer * tokens + last)
