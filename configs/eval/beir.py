"""BEIR: the 15 public retrieval sets, nDCG@10, on their test queries (MS MARCO: dev).

    python -m e5jax.evaluate --config configs/eval/beir.py --model runs/e5_mistral_7b

The numbers beside it: E5-mistral-7b with full data, Table 17 of arXiv 2401.00368; their mean is its 56.9 on BEIR. Texts
are cut to 512 tokens, as there. Some collections have millions of passages: at 7B this takes accelerators.
"""

from e5jax.config import EvaluateConfig


PAPER = {
    "ArguAna": 61.9,
    "ClimateFEVER": 38.4,
    "CQADupstackRetrieval": 43.0,
    "DBPedia": 48.9,
    "FEVER": 87.8,
    "FiQA2018": 56.6,
    "HotpotQA": 75.7,
    "MSMARCO": 43.1,
    "NFCorpus": 38.6,
    "NQ": 63.5,
    "QuoraRetrieval": 89.6,
    "SCIDOCS": 16.3,
    "SciFact": 76.4,
    "Touche2020": 26.4,
    "TRECCOVID": 87.2,
}


def get_config() -> EvaluateConfig:
    return EvaluateConfig(
        output="runs/eval/beir",
        model=("intfloat/e5-mistral-7b-instruct",),
        tasks=tuple(PAPER),
        max_length=512,
        paper=PAPER,
    )
