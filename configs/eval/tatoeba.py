"""Tatoeba: up to 1,000 everyday sentences in each of 112 languages and their English translations, F1 of the nearest.

    python -m e5jax.evaluate --config configs/eval/tatoeba.py --model runs/e5_mistral_7b

The number beside it: E5-mistral-7b with full data, Table 4 of arXiv 2401.00368, the mean of the languages.
"""

from e5jax.config import EvaluateConfig


def get_config() -> EvaluateConfig:
    return EvaluateConfig(
        output="runs/eval/tatoeba",
        model=("intfloat/e5-mistral-7b-instruct",),
        tasks=("Tatoeba",),
        max_length=512,
        paper={"Tatoeba": 70.1},
    )
