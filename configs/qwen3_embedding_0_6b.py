"""Fine-tune Qwen3-Embedding-0.6B on your own pairs, $PAIRS: `query`, `positive` and perhaps `negatives`.

    PAIRS=mine.jsonl python -m e5jax.train --config configs/qwen3_embedding_0_6b.py --workdir runs/mine

The first 500 records are held out. The base is an embedder already: a short run at a small learning rate.
"""

import os

from e5jax.config import DataConfig, EvalSet, OptimConfig, Pretrained, TrainConfig
from e5jax.records import Source


TASK = "Given a web search query, retrieve relevant passages that answer the query"


def get_config() -> TrainConfig:
    pairs = os.environ.get("PAIRS", "data/pairs.jsonl")
    return TrainConfig(
        workdir="runs/qwen3_embedding_0_6b",
        steps=300,
        batch_size=256,
        model=Pretrained(base="Qwen/Qwen3-Embedding-0.6B"),
        data=DataConfig(train=(Source(path=pairs, rows="500:", task=TASK),), max_negatives=4),
        eval=(EvalSet(name="held-out", sources=(Source(path=pairs, rows=":500", task=TASK),)),),
        optim=OptimConfig(peak_lr=5e-5, warmup_steps=30, weight_decay=0.01),
        eval_every=50,
    )
