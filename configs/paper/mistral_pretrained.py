"""Mistral-7B on the full data, from the adapters of its contrastive pre-training (Table 7)."""

import dataclasses

import e5_mistral_7b

from e5jax.config import TrainConfig


def get_config() -> TrainConfig:
    config = e5_mistral_7b.get_config()
    return dataclasses.replace(config, workdir="runs/paper/mistral_pretrained", init_from="runs/paper/pretrain_mistral")
