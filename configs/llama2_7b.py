"""The paper's "initialise from LLaMA-2 7B" (Table 5): the ablation setting with another base."""

import dataclasses

import e5_mistral_7b_synthetic_msmarco

from e5jax.config import Pretrained, TrainConfig


def get_config() -> TrainConfig:
    return dataclasses.replace(
        e5_mistral_7b_synthetic_msmarco.get_config(),
        workdir="runs/llama2_7b",
        model=Pretrained(base="meta-llama/Llama-2-7b-hf"),
    )
