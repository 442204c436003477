"""all-MiniLM-L6-v2 learns translations so that its vectors can be cut: Matryoshka at 256, 128 and 64 of 384 dimensions.

    E5JAX_DATA=FOLDER python -m e5jax.train --config configs/minilm_matryoshka.py

Pairs of `minilm_multilingual.py`, in other shares and at ten times its rate: Tatoeba's translations of 20 languages
into English, and STS-B's in 6. With the loss of cut vectors beside that of whole ones (arXiv 2205.13147), what is
learnt goes to the first dimensions. That is what this recipe shows: mining translations, which it trains, loses less
than half as much at 128 dimensions; search, which it does not, loses more. `python -m benchmarks.matryoshka` measures
both, with and without. English pays for so much of it: see `minilm_multilingual.py` for a recipe that is careful.
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
