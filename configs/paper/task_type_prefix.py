"""The paper's "w/ task type prefix" (Table 5): the ablation setting, a word in the place of an instruction.

"classify: " for long-short tasks, "query: " for the other asymmetric ones, nothing for symmetric ones.
"""

import dataclasses

import synthetic_msmarco

from e5jax.config import TrainConfig
from e5jax.records import Source


PREFIX = {"long-short": "classify", "short-long": "query", "short-short": "query", "long-long": "query"}


def prefixed(source: Source, otherwise: str | None) -> Source:
    """Its records under a word for their type; those without a type under `otherwise`."""
    return dataclasses.replace(source, task_of_type=PREFIX, task=otherwise)


def get_config() -> TrainConfig:
    config = synthetic_msmarco.get_config()
    synthetic, msmarco = config.data.train
    train = (prefixed(synthetic, None), prefixed(msmarco, "query"))
    data = dataclasses.replace(config.data, train=train, query_prompt="{task}: ")
    return dataclasses.replace(config, workdir="runs/paper/task_type_prefix", data=data)
