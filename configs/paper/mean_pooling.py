"""The paper's "w/ mean pooling" (Table 5): the ablation setting, pooled over all tokens."""

import dataclasses

import synthetic_msmarco

from e5jax.config import TrainConfig


def get_config() -> TrainConfig:
    config = synthetic_msmarco.get_config()
    model = dataclasses.replace(config.model, pooling="mean")
    return dataclasses.replace(config, workdir="runs/paper/mean_pooling", model=model)
