"""The paper's ablation setting (Table 5): synthetic data and MS MARCO passages.

500,000 synthetic examples and half of MS MARCO's 502,939 training queries, once: 367 steps of 2,048. The paper does not
say how many steps it took.
"""

import dataclasses

import e5_mistral_7b

from e5jax.config import TrainConfig
from e5jax.records import Source


def get_config() -> TrainConfig:
    full = e5_mistral_7b.get_config()
    train = (Source(path=e5_mistral_7b.SYNTHETIC, split="train[1%:]"), e5_mistral_7b.public("msmarco_passage"))
    return dataclasses.replace(
        full,
        workdir="runs/paper/synthetic_msmarco",
        steps=367,
        data=dataclasses.replace(full.data, train=train),
    )
