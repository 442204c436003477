"""BUCC 2018: sentences of German, French, Russian and Chinese news and their English translations, F1 of the nearest.

    python -m e5jax.evaluate --config configs/eval/bucc.py --model runs/e5_mistral_7b

The number beside it: E5-mistral-7b with full data, Table 4 of arXiv 2401.00368, the mean of the four languages.
"""

from e5jax.config import EvaluateConfig


def get_config() -> EvaluateConfig:
    return EvaluateConfig(
        output="runs/eval/bucc",
        model=("intfloat/e5-mistral-7b-instruct",),
        tasks=("BUCC",),
        max_length=512,
        paper={"BUCC": 98.9},
    )
