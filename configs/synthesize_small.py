"""Sixty examples of all six types, for a first look: a few cents.

GEMINI_API_KEY=... python -m e5jax.synthesize --config configs/synthesize_small.py
python -m e5jax.package --workdir runs/synthetic_small
"""

from e5jax.synthetic.config import CapsConfig, SynthesizeConfig


def get_config() -> SynthesizeConfig:
    return SynthesizeConfig(workdir="runs/synthetic_small", examples=60, caps=CapsConfig(dollars=1.0))
