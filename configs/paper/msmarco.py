"""The paper's "msmarco data only" (Table 5): half of MS MARCO's 502,939 training queries, once."""

import dataclasses

import e5_mistral_7b

from e5jax.config import TrainConfig


def get_config() -> TrainConfig:
    full = e5_mistral_7b.get_config()
    train = (e5_mistral_7b.public("msmarco_passage"),)
    return dataclasses.replace(
        full, workdir="runs/paper/msmarco", steps=123, data=dataclasses.replace(full.data, train=train)
    )
