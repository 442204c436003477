"""Matrix FLOPs: the least that a result needs."""

from e5jax.decoder import DecoderConfig


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
