"""Contrastive pre-training of XLM-R large on a billion weakly supervised pairs: multilingual E5's first stage.

    E5_PRETRAIN_DATA=FOLDER python -m e5jax.train --config configs/paper/pretrain_xlm_r.py
    python -m e5jax.train --config configs/paper/xlm_r_pretrained.py          # the second stage, from its result

"Is contrastive pre-training necessary?" (arXiv 2401.00368, §5.1) asks what this buys XLM-R, and what it buys a Mistral
(pretrain_mistral.py), when both are then trained on the same data. From arXiv 2402.05672: 30,000 steps of 32,768 pairs,
about a billion, in-batch negatives alone, mean pooling, "query: " and "passage: ", peak 1e-4 for this size; the rest
(temperature 0.01, 128 tokens, 1,000 steps of warm-up, weight decay 0.01) from English E5, arXiv 2212.03533, which it
follows. Betas are AdamW's own, dropout is XLM-R's.

FOLDER has a folder of .parquet, with `query` and `positive`, for each name below.
"""

import os

from e5jax.config import DataConfig, OptimConfig, PackingConfig, Pretrained, TrainConfig
from e5jax.records import Source


FOLDER = os.environ.get("E5_PRETRAIN_DATA", "data/pretrain")

# Folder -> its share of the pairs that are drawn, in millions (arXiv 2402.05672, Table 1), and what is paired in it.
PAIRS = {
    "wikipedia": 150,  # section title, passage
    "mc4": 160,  # title, page
    "cc_news": 160,  # title, article
    "nllb": 160,  # translations
    "reddit": 160,  # comment, reply
    "s2orc": 50,  # title, abstract; citations
    "stackexchange": 50,  # question, answer
    "xp3": 80,  # prompt, response
    "sbert": 10,  # the pairs of sentence-transformers
}


def get_config() -> TrainConfig:
    return TrainConfig(
        workdir="runs/paper/pretrain_xlm_r",
        steps=30_000,
        batch_size=32_768,
        model=Pretrained(base="FacebookAI/xlm-roberta-large", pooling="mean"),
        lora=None,
        data=DataConfig(
            train=tuple(Source(path=f"{FOLDER}/{name}", weight=float(share)) for name, share in PAIRS.items()),
            query_prompt="query: ",
            passage_prompt="passage: ",
            max_length=128,
            max_negatives=0,
            on_bad_record="skip",
        ),
        packing=PackingConfig(widths=(128,)),
        optim=OptimConfig(peak_lr=1e-4, warmup_steps=1_000, weight_decay=0.01),
        dropout=0.1,
        temperature=0.01,
        eval_every=1_000,
        checkpoint_every=1_000,
    )
