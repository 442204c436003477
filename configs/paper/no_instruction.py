"""The paper's "w/o instruction" (Table 5): the ablation setting, queries as bare as passages."""

import dataclasses

import synthetic_msmarco

from e5jax.config import TrainConfig


def get_config() -> TrainConfig:
    config = synthetic_msmarco.get_config()
    data = dataclasses.replace(config.data, query_prompt="")
    return dataclasses.replace(config, workdir="runs/paper/no_instruction", data=data)
