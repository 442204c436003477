"""Adapters on top of what the quickstart trained: the same loop with a frozen base.

make quickstart && python -m e5jax.train --config configs/quickstart_lora.py
"""

import dataclasses

import quickstart

from e5jax.config import LoraConfig, OptimConfig, Pretrained, TrainConfig


def get_config() -> TrainConfig:
    return dataclasses.replace(
        quickstart.get_config(),
        workdir="runs/quickstart_lora",
        model=Pretrained(base="runs/quickstart", dtype="float32"),
        lora=LoraConfig(rank=8, alpha=16.0),
        optim=OptimConfig(peak_lr=5e-4, warmup_steps=10),
    )
