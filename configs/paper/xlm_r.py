"""XLM-R large on the full data without contrastive pre-training (Table 7): xlm_r_pretrained.py but for its first."""

import dataclasses

import xlm_r_pretrained

from e5jax.config import TrainConfig


def get_config() -> TrainConfig:
    return dataclasses.replace(xlm_r_pretrained.get_config(), workdir="runs/paper/xlm_r", init_from=None)
