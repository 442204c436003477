"""The paper's "initialise from LLaMA-2 7B" (Table 5): the ablation setting with another base."""

import dataclasses

import synthetic_msmarco

from e5jax.config import Pretrained, TrainConfig


def get_config() -> TrainConfig:
    return dataclasses.replace(
        synthetic_msmarco.get_config(),
        workdir="runs/paper/llama2",
        model=Pretrained(base="meta-llama/Llama-2-7b-hf"),
    )
