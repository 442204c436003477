"""The paper's run on synthetic data alone (Table 1, "w/ synthetic data only"): 500,000 examples once, 244 steps."""

import dataclasses

import e5_mistral_7b

from e5jax.config import TrainConfig
from e5jax.records import Source


def get_config() -> TrainConfig:
    full = e5_mistral_7b.get_config()
    train = (Source(path=e5_mistral_7b.SYNTHETIC, split="train[1%:]"),)
    return dataclasses.replace(
        full,
        workdir="runs/paper/synthetic",
        steps=244,
        data=dataclasses.replace(full.data, train=train),
    )
