"""Real text on a CPU: XQuAD questions → passages, STS paraphrases and Tatoeba translations, the Mistral tokenizer.

    E5JAX_DATA=FOLDER python -m e5jax.train --config configs/xquad_cpu.py

A one-layer Mistral from random weights. Measured on the questions of 12 articles that training never saw, each against
all 240 passages of its language. The README tells where the public originals of FOLDER are.
"""

import os
from pathlib import Path

from e5jax.config import DataConfig, EvalSet, FromScratch, OptimConfig, PackingConfig, TrainConfig
from e5jax.decoder import DecoderConfig
from e5jax.errors import UserError
from e5jax.records import Source


QUESTION = "Given a question, retrieve Wikipedia passages that answer the question"
TRAINED_ARTICLES, HELDOUT_ARTICLES = ":36", "36:"


def get_config() -> TrainConfig:
    if "E5JAX_DATA" not in os.environ:
        raise UserError("set E5JAX_DATA to the folder with xquad/, stsb/, tatoeba/ and mistral-tokenizer/ (see README)")
    folder = Path(os.environ["E5JAX_DATA"])

    def xquad(language, rows):
        return Source(path=str(folder / "xquad" / f"{language}.json"), rows=rows, task=QUESTION)

    def sts(language):
        return Source(
            path=str(folder / "stsb" / f"{language}-train.csv"),
            min_score=4.0,
            task="Retrieve semantically similar text.",
        )

    def tatoeba(language):
        pair = folder / "tatoeba" / f"{language}-eng.{language}"
        return Source(path=str(pair), positives=str(pair.with_suffix(".eng")), task="Retrieve parallel sentences.")

    languages = ("en", "de", "es", "ru", "zh", "ar", "vi", "tr")
    return TrainConfig(
        workdir="runs/xquad_cpu",
        steps=300,
        batch_size=64,
        model=FromScratch(
            architecture=DecoderConfig(
                family="mistral",
                vocab_size=32_000,
                dim=256,
                hidden=512,
                layers=1,
                heads=8,
                kv_heads=8,
                head_dim=32,
                window=256,
                rope_theta=1e4,
                norm_eps=1e-5,
                qk_norm=False,
            ),
            tokenizer=str(folder / "mistral-tokenizer"),
        ),
        lora=None,
        data=DataConfig(
            train=(
                *(xquad(language, TRAINED_ARTICLES) for language in languages),
                *(sts(language) for language in ("en", "de", "es", "fr", "ru", "zh")),
                *(tatoeba(language) for language in ("deu", "spa", "rus", "cmn", "ara", "vie", "tur")),
            ),
            max_length=256,
            max_negatives=0,
            same_source_batches=True,
        ),
        eval=tuple(
            EvalSet(
                name=f"xquad-{language}",
                sources=(xquad(language, HELDOUT_ARTICLES),),
                pool=(xquad(language, TRAINED_ARTICLES),),
            )
            for language in languages
        ),
        packing=PackingConfig(widths=(256,), chunks=4),
        optim=OptimConfig(peak_lr=1e-3, warmup_steps=40),
        temperature=0.1,
        eval_every=50,
        checkpoint_every=100,
    )
