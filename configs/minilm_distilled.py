"""Half of all-MiniLM-L6-v2's layers learn to give the vectors of all six: twice the speed for a few points.

    E5JAX_DATA=FOLDER python -m e5jax.train --config configs/minilm_distilled.py

English texts, no labels: STS-B's training sentences, the passages and questions of 36 XQuAD articles, the English side
of Tatoeba's pairs. The teacher's vectors are computed once. MINILM names another folder with the model than the hub's.
`python -m benchmarks.distill` measures what the student keeps.
"""

import os
from pathlib import Path

from e5jax.config import DataConfig, DistillConfig, EvalSet, OptimConfig, PackingConfig, Pretrained, TrainConfig
from e5jax.errors import UserError
from e5jax.records import Source


TATOEBA = (
    "ces",
    "cmn",
    "deu",
    "fin",
    "heb",
    "ita",
    "jpn",
    "kor",
    "nld",
    "pol",
    "por",
    "spa",
    "swe",
    "tur",
    "ukr",
    "vie",
)


def get_config() -> TrainConfig:
    if "E5JAX_DATA" not in os.environ:
        raise UserError("set E5JAX_DATA to the folder with xquad/, stsb/ and tatoeba/ (see README)")
    folder = Path(os.environ["E5JAX_DATA"])
    minilm = os.environ.get("MINILM", "sentence-transformers/all-MiniLM-L6-v2")
    xquad = str(folder / "xquad" / "en.json")
    english = (str(folder / "tatoeba" / f"{language}-eng.eng") for language in TATOEBA)
    return TrainConfig(
        workdir="runs/minilm_distilled",
        steps=300,
        batch_size=64,
        model=Pretrained(base=minilm, dtype="float32", keep_layers=(0, 2, 5)),
        lora=None,
        distill=DistillConfig(teacher=minilm, match=1.0),
        data=DataConfig(
            train=(
                Source(path=str(folder / "stsb" / "en-train.csv"), weight=0.6),
                Source(path=xquad, rows=":36", weight=0.15),
                *(Source(path=path, texts=True, weight=0.25 / len(TATOEBA)) for path in english),
            ),
            query_prompt="",
            max_length=256,
            max_negatives=0,
        ),
        eval=(
            EvalSet(name="xquad-en", sources=(Source(path=xquad, rows="36:"),), pool=(Source(path=xquad, rows=":36"),)),
        ),
        packing=PackingConfig(widths=(256, 64)),
        optim=OptimConfig(peak_lr=3e-4, warmup_steps=50, weight_decay=0.01),
        temperature=0.05,
        eval_every=100,
        checkpoint_every=100,
    )
