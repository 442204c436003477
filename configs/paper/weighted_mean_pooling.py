"""The paper's "w/ weighted mean" (Table 5): the ablation setting; later tokens weigh more (SGPT, arXiv 2202.08904)."""

import dataclasses

import synthetic_msmarco

from e5jax.config import TrainConfig


def get_config() -> TrainConfig:
    config = synthetic_msmarco.get_config()
    model = dataclasses.replace(config.model, pooling="weighted_mean")
    return dataclasses.replace(config, workdir="runs/paper/weighted_mean_pooling", model=model)
