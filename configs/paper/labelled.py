"""The paper's "w/o synthetic data" (Table 17): the 13 public sets alone.

About 1.3 million examples once: 635 steps of 2,048; the paper does not say how many steps it took.
"""

import dataclasses

import e5_mistral_7b

from e5jax.config import TrainConfig
from e5jax.public_sets.sets import SETS


def get_config() -> TrainConfig:
    full = e5_mistral_7b.get_config()
    train = tuple(map(e5_mistral_7b.public, SETS))
    return dataclasses.replace(
        full, workdir="runs/paper/labelled", steps=635, data=dataclasses.replace(full.data, train=train)
    )
