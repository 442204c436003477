"""E5-mistral-7b-instruct: the paper's full-data run (arXiv 2401.00368, §4.2 and appendix A).

    python -m e5jax.train --config configs/e5_mistral_7b.py --workdir runs/e5_mistral_7b

From the paper: Mistral-7B-v0.1, LoRA of rank 16 on all linear layers, 2,048 queries a step with one hard negative each,
512 tokens, temperature 0.02, AdamW with weight decay 0.1, peak 1e-4 after 100 steps, linear decay, one epoch of about
1.8 million examples. Not in the paper: LoRA's alpha 32 and dropout 0.1 (those of its published adapter), AdamW's betas.

Data: 500,000 synthetic records as a TFDS dataset, 13 public sets (MS MARCO twice) as JSONL, in $E5_DATA (default
data/e5); `python -m e5jax.public` writes them from the public copies (docs/public_sets.md), and public_sets/sets.py
has the share of each and its instructions. Every device holds a copy of the base; `--mesh 1 -1 1` splits it instead.
How much of the batch keeps its activations follows from the devices' memory.
"""

import os

from e5jax.config import DataConfig, EvalSet, OptimConfig, PackingConfig, Pretrained, TrainConfig
from e5jax.public_sets.sets import SETS
from e5jax.records import Source


FOLDER = os.environ.get("E5_DATA", "data/e5")
SYNTHETIC = f"{FOLDER}/synthetic"


def public(name: str) -> Source:
    known = SETS[name]
    return Source(path=f"{FOLDER}/{name}.jsonl", sample=known.share, task=known.instructions[0])


def get_config() -> TrainConfig:
    return TrainConfig(
        workdir="runs/e5_mistral_7b",
        steps=879,  # 1.8 million examples, once
        batch_size=2048,
        model=Pretrained(base="mistralai/Mistral-7B-v0.1"),
        data=DataConfig(
            train=(Source(path=SYNTHETIC, split="train[1%:]"), *map(public, SETS)),
            max_length=512,
            max_negatives=1,
        ),
        eval=(EvalSet(name="synthetic", sources=(Source(path=SYNTHETIC, split="train[:1%]", sample=0.2),)),),
        packing=PackingConfig(widths=(512, 128)),
        optim=OptimConfig(peak_lr=1e-4, warmup_steps=100, weight_decay=0.1),
        temperature=0.02,
        eval_every=100,
        checkpoint_every=50,
    )
