"""all-MiniLM-L6-v2, an English encoder, taught other languages on a CPU: all of its weights, bare texts.

    E5JAX_DATA=FOLDER python -m e5jax.train --config configs/minilm_multilingual.py

XQuAD questions → passages in 8 languages, STS-B's training pairs of score 4 and more in 6, Tatoeba's translations of 20
into English. Held out: the questions of 12 XQuAD articles, in every language alike, since the articles are
translations of each other; the last 500 pairs of each Tatoeba file; STS-B's dev and test parts. MINILM names another
folder with the model than the hub's. `python -m benchmarks.finetune` compares the result with sentence-transformers'.
"""

import os
from pathlib import Path

from e5jax.config import DataConfig, EvalSet, OptimConfig, PackingConfig, Pretrained, TrainConfig
from e5jax.errors import UserError
from e5jax.records import Source


TRAINED_ARTICLES, HELDOUT_ARTICLES = ":36", "36:"
TRAINED_PAIRS, HELDOUT_PAIRS = ":500", "500:"
XQUAD = ("en", "de", "es", "ru", "zh", "ar", "vi", "tr")
STSB = ("en", "de", "es", "fr", "ru", "zh")
TATOEBA = (
    *("ara", "ces", "cmn", "deu", "fin", "fra", "heb", "hin", "ita", "jpn"),
    *("kor", "nld", "pol", "por", "rus", "spa", "swe", "tur", "ukr", "vie"),
)


def get_config() -> TrainConfig:
    if "E5JAX_DATA" not in os.environ:
        raise UserError("set E5JAX_DATA to the folder with xquad/, stsb/ and tatoeba/ (see README)")
    folder = Path(os.environ["E5JAX_DATA"])

    def xquad(language, rows):
        return Source(path=str(folder / "xquad" / f"{language}.json"), rows=rows)

    def sts(language):
        return Source(path=str(folder / "stsb" / f"{language}-train.csv"), min_score=4.0)

    def tatoeba(language):
        pair = folder / "tatoeba" / f"{language}-eng.{language}"
        return Source(path=str(pair), positives=str(pair.with_suffix(".eng")), rows=TRAINED_PAIRS)

    return TrainConfig(
        workdir="runs/minilm_multilingual",
        steps=300,
        batch_size=32,
        model=Pretrained(base=os.environ.get("MINILM", "sentence-transformers/all-MiniLM-L6-v2"), dtype="float32"),
        lora=None,
        data=DataConfig(
            train=(
                *(xquad(language, TRAINED_ARTICLES) for language in XQUAD),
                *(sts(language) for language in STSB),
                *(tatoeba(language) for language in TATOEBA),
            ),
            query_prompt="",
            passage_prompt="",
            max_length=256,
            max_negatives=0,
        ),
        eval=tuple(
            EvalSet(
                name=f"xquad-{language}",
                sources=(xquad(language, HELDOUT_ARTICLES),),
                pool=(xquad(language, TRAINED_ARTICLES),),
            )
            for language in XQUAD
        ),
        packing=PackingConfig(widths=(256, 64)),
        optim=OptimConfig(peak_lr=1e-4, warmup_steps=30, weight_decay=0.01, clip_norm=1.0),
        temperature=0.05,
    )
