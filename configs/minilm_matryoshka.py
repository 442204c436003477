"""all-MiniLM-L6-v2 learns translations so that its vectors can be cut: Matryoshka at 256, 128 and 64 of 384 dimensions.

    E5JAX_DATA=FOLDER python -m e5jax.train --config configs/minilm_matryoshka.py

Pairs of `minilm_multilingual.py`, in other shares and at ten times its rate: Tatoeba's translations of 20 languages
into English, and STS-B's in 6. What a model knows already stays where it is in its vectors; what it learns with the
loss of the cut vectors beside that of the whole ones (arXiv 2205.13147) goes to the first dimensions. So this recipe
teaches much, and English pays for it. `python -m benchmarks.matryoshka` measures what is lost by cutting, with and
without.
"""

import dataclasses

import minilm_multilingual

from e5jax.config import OptimConfig, PackingConfig, TrainConfig


TATOEBA_SHARE = 0.7


def get_config() -> TrainConfig:
    config = minilm_multilingual.get_config()
    stsb, tatoeba = (
        [source for source in config.data.train if name in source.path.split("/")] for name in ("stsb", "tatoeba")
    )
    return dataclasses.replace(
        config,
        workdir="runs/minilm_matryoshka",
        steps=200,
        batch_size=64,
        data=dataclasses.replace(
            config.data,
            train=(
                *(dataclasses.replace(source, weight=(1 - TATOEBA_SHARE) / len(stsb)) for source in stsb),
                *(dataclasses.replace(source, weight=TATOEBA_SHARE / len(tatoeba)) for source in tatoeba),
            ),
            max_length=128,
        ),
        eval=(),
        packing=PackingConfig(widths=(128,)),
        optim=OptimConfig(peak_lr=3e-4, warmup_steps=20, weight_decay=0.01, clip_norm=1.0),
        matryoshka=(256, 128, 64),
    )
