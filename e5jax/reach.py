"""How far a decoder sees at inference: another window, another base of its rotary angles.

Trained on short texts, it reads longer ones with a larger base, since its angles then stay among those that it knows
(Wang et al. 2024, arXiv 2401.00368, §5.2 and figure 5). By how much is what NTK-aware scaling says: texts `scale` times
as long turn the slowest pair of components by what they turned before, and the fastest is left as it is. It took
E5-mistral from 64.4 to 75.3 on LongEmbed (arXiv 2404.12096), without training.
"""

from e5jax.decoder import DecoderConfig
from e5jax.encoder import Encoder
from e5jax.errors import UserError


def ntk_base(rope_theta: float, scale: float, head_dim: int) -> float:
    """The base under which texts may be `scale` times as long: theta · scale^(d / (d - 2)), d components of a head."""
    return rope_theta * scale ** (head_dim / (head_dim - 2))


def reaching(encoder: Encoder, window: int | None, rope_theta: float | None, rope_scale: float | None) -> Encoder:
    """The encoder with what is not None; a window of 0 is none. UserError for a model that has neither."""
    if window is None and rope_theta is None and rope_scale is None:
        return encoder
    cfg = encoder.model.cfg
    if not isinstance(cfg, DecoderConfig):
        raise UserError(f"window, rope_theta and rope_scale are for decoders: a {cfg.family} has none of them")
    base = rope_theta or cfg.rope_theta
    if rope_scale is not None:
        base = ntk_base(base, rope_scale, cfg.head_dim)
    return encoder.attending(window=cfg.window if window is None else window or None, rope_theta=base)
