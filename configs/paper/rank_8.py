"""The paper's "w/ LoRA r=8" (Table 5): the ablation setting; alpha stays twice the rank."""

import dataclasses

import synthetic_msmarco

from e5jax.config import LoraConfig, TrainConfig


def get_config() -> TrainConfig:
    config = synthetic_msmarco.get_config()
    return dataclasses.replace(config, workdir="runs/paper/rank_8", lora=LoraConfig(rank=8, alpha=16.0))
