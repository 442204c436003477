"""XLM-R large on the data of E5-Mistral, from the contrastive pre-training of pretrain_xlm_r.py: its second stage.

    python -m e5jax.train --config configs/paper/xlm_r_pretrained.py
    python -m e5jax.train --config configs/paper/xlm_r.py

The second config leaves pre-training out: the comparison of arXiv 2401.00368, §5.1, in which it is worth 8.2 points of
retrieval to XLM-R large. Records, instructions and batches are those of e5_mistral_7b.py; all weights are trained, at
the learning rate and weight decay that multilingual E5 (arXiv 2402.05672) fine-tunes this size with.
"""

import dataclasses

import e5_mistral_7b

from e5jax.config import OptimConfig, Pretrained, TrainConfig


def get_config() -> TrainConfig:
    return dataclasses.replace(
        e5_mistral_7b.get_config(),
        workdir="runs/paper/xlm_r_pretrained",
        model=Pretrained(base="FacebookAI/xlm-roberta-large", pooling="mean"),
        lora=None,
        init_from="runs/paper/pretrain_xlm_r",
        optim=OptimConfig(peak_lr=1e-5, warmup_steps=100, weight_decay=0.01),
        dropout=0.1,
    )
