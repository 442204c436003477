"""A tiny Mistral learns to embed in about a minute on two CPU cores, from random weights and the built-in sample.

    make quickstart     # which also makes the dataset: synthesize_sample.py, package_sample.py

It trains every weight: adapters on a random base are no recipe. Its tokenizer is trained from the sample, too. What is
measured is retrieval for tasks that training never saw.
"""

from e5jax.config import DataConfig, EvalSet, FromScratch, OptimConfig, PackingConfig, TrainConfig
from e5jax.decoder import DecoderConfig
from e5jax.records import Source


SAMPLE = "runs/sample/dataset/synthetic_text_embeddings/all/1.0.0"
TINY_MISTRAL = DecoderConfig(
    family="mistral",
    vocab_size=2048,
    dim=256,
    hidden=512,
    layers=1,
    heads=8,
    kv_heads=2,
    head_dim=32,
    window=128,
    rope_theta=1e4,
    norm_eps=1e-5,
    qk_norm=False,
)


def get_config() -> TrainConfig:
    return TrainConfig(
        workdir="runs/quickstart",
        steps=40,
        batch_size=64,
        model=FromScratch(architecture=TINY_MISTRAL),
        lora=None,
        data=DataConfig(train=(Source(path=SAMPLE),), max_length=128),
        eval=(EvalSet(name="unseen-tasks", sources=(Source(path=SAMPLE, split="heldout"),)),),
        packing=PackingConfig(widths=(128,), chunks=4),
        optim=OptimConfig(peak_lr=1e-3, warmup_steps=10),
        temperature=0.2,  # 552 records: the paper's 0.02 would be learnt by heart
        eval_every=10,
        checkpoint_every=20,
    )
