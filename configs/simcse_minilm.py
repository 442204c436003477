"""all-MiniLM-L6-v2 on your own texts, $TEXTS, without a label: unsupervised SimCSE (arXiv 2104.08821).

    TEXTS=mine.txt python -m e5jax.train --config configs/simcse_minilm.py --workdir runs/mine

A text a line, or the field `text` of .jsonl and .parquet. Each is its own positive, and dropout, drawn anew for the
other side, is all that tells the two apart; the other texts of a batch are the negatives. From the paper: temperature
0.05, dropout 0.1, batches of 64, peak 3e-5 (its BERT-base), no warm-up or weight decay; it went once through a million
sentences of 32 tokens, which is `--steps 15625 --data.max-length 32`. Measure before and after: where a model has seen
labels, as this one has, texts alone can also take from it.
"""

import os

from e5jax.config import DataConfig, OptimConfig, PackingConfig, Pretrained, TrainConfig
from e5jax.records import Source


def get_config() -> TrainConfig:
    return TrainConfig(
        workdir="runs/simcse_minilm",
        steps=1_000,
        batch_size=64,
        model=Pretrained(base=os.environ.get("MINILM", "sentence-transformers/all-MiniLM-L6-v2"), dtype="float32"),
        lora=None,
        data=DataConfig(
            train=(Source(path=os.environ.get("TEXTS", "data/texts.txt"), texts=True),),
            query_prompt="",
            passage_prompt="",
            max_length=64,
            max_negatives=0,
        ),
        packing=PackingConfig(widths=(64,), chunks=1),
        optim=OptimConfig(peak_lr=3e-5, warmup_steps=0, weight_decay=0.0),
        dropout=0.1,
        temperature=0.05,
    )
