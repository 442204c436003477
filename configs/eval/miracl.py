"""MIRACL: questions in 18 languages against each one's Wikipedia, nDCG@10 on the development queries.

    python -m e5jax.evaluate --config configs/eval/miracl.py --model runs/e5_mistral_7b

The numbers beside it: E5-mistral-7b with full data, Table 6 of arXiv 2401.00368: 16 languages, 62.9 on average (its
recall@100: 92.6). mteb's own score of the task is the mean of 18, German and Yoruba too; so it stands alone, and the
mean to compare with the paper's is the last line under the languages. Texts are cut to 512 tokens, as there.
"""

from e5jax.config import EvaluateConfig


PAPER = {
    "ar": 73.3,
    "bn": 70.3,
    "en": 57.3,
    "es": 52.2,
    "fa": 52.1,
    "fi": 74.7,
    "fr": 55.2,
    "hi": 52.1,
    "id": 52.7,
    "ja": 66.8,
    "ko": 61.8,
    "ru": 67.7,
    "sw": 68.4,
    "te": 73.9,
    "th": 74.0,
    "zh": 54.0,
}


def get_config() -> EvaluateConfig:
    return EvaluateConfig(
        output="runs/eval/miracl",
        model=("intfloat/e5-mistral-7b-instruct",),
        tasks=("MIRACLRetrieval",),
        max_length=512,
        paper={f"MIRACLRetrieval/{language}": ndcg for language, ndcg in PAPER.items()},
    )
