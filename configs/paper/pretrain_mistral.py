"""The same contrastive pre-training for Mistral-7B: the other half of "is it necessary?" (arXiv 2401.00368, §5.1).

    E5_PRETRAIN_DATA=FOLDER python -m e5jax.train --config configs/paper/pretrain_mistral.py
    python -m e5jax.train --config configs/paper/mistral_pretrained.py

The pairs, prefixes, batch and temperature of pretrain_xlm_r.py; the LoRA, learning rate and weight decay of the paper's
fine-tuning, so that the second stage goes on with the same adapters; 10,000 steps, as the paper took. It found next to
no difference for it.
"""

import dataclasses

import pretrain_xlm_r

from e5jax.config import LoraConfig, OptimConfig, Pretrained, TrainConfig


def get_config() -> TrainConfig:
    return dataclasses.replace(
        pretrain_xlm_r.get_config(),
        workdir="runs/paper/pretrain_mistral",
        steps=10_000,
        model=Pretrained(base="mistralai/Mistral-7B-v0.1"),
        lora=LoraConfig(),
        optim=OptimConfig(peak_lr=1e-4, warmup_steps=1_000, weight_decay=0.1),
        dropout=0.0,
    )
