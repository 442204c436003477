"""The paper's "w/ LoRA r=32" (Table 5): the ablation setting; alpha stays twice the rank."""

import dataclasses

import synthetic_msmarco

from e5jax.config import LoraConfig, TrainConfig


def get_config() -> TrainConfig:
    config = synthetic_msmarco.get_config()
    return dataclasses.replace(config, workdir="runs/paper/rank_32", lora=LoraConfig(rank=32, alpha=64.0))
