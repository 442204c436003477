"""Adapters on top of what the quickstart trained: a frozen base learns a domain that it never saw.

    make quickstart && python -m e5jax.train --config configs/quickstart_lora.py

The sample's held-out tasks play the new domain: 52 of their records are trained on, the other 52 are measured.
"""

import dataclasses

import quickstart

from e5jax.config import EvalSet, LoraConfig, OptimConfig, Pretrained, TrainConfig
from e5jax.records import Source


def get_config() -> TrainConfig:
    base = quickstart.get_config()
    return dataclasses.replace(
        base,
        workdir="runs/quickstart_lora",
        steps=10,
        batch_size=32,
        model=Pretrained(base="runs/quickstart", dtype="float32"),
        lora=LoraConfig(rank=8, alpha=16.0),
        data=dataclasses.replace(base.data, train=(Source(path=quickstart.SAMPLE, split="heldout[:52]"),)),
        eval=(EvalSet(name="new-domain", sources=(Source(path=quickstart.SAMPLE, split="heldout[52:]"),)),),
        optim=OptimConfig(peak_lr=3e-4, warmup_steps=5),
        eval_every=5,
        checkpoint_every=10,
    )
