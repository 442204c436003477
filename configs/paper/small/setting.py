"""What the tables have in common at small scale: a CPU, minutes a run, real text in $E5JAX_DATA.

The base is all-MiniLM-L6-v2 (MINILM names another folder with it than the hub's name), LoRA of rank 16 beside it. The
built-in sample's 552 examples stand for the synthetic data, XQuAD's English questions for MS MARCO, STS-B's paraphrases
and Tatoeba's translations for the other labelled sets. What is measured was held out of all of them; of Banking77 it is
a part, 20 texts of each class to learn from and 20 to test.
"""

import collections
import csv
import dataclasses
import os
from pathlib import Path

from configs.minilm_multilingual import TRAINED_ARTICLES, TRAINED_PAIRS
from e5jax import package, synthesize
from e5jax.command import load_config
from e5jax.config import DataConfig, EvalSet, LoraConfig, OptimConfig, PackingConfig, Pretrained, TrainConfig
from e5jax.errors import UserError
from e5jax.records import Source


if "E5JAX_DATA" not in os.environ:
    raise UserError("set E5JAX_DATA to the folder with xquad/, stsb/, tatoeba/ and banking77/ (see README)")
DATA = Path(os.environ["E5JAX_DATA"])
MINILM = os.environ.get("MINILM", "sentence-transformers/all-MiniLM-L6-v2")
MADE = Path("runs/experiments/small-data")
HELDOUT = MADE / "heldout"
A_CLASS = 20
"""Texts of each of Banking77's 77 classes, to train its classifier and to test it."""
SAMPLE = "runs/sample/dataset/synthetic_text_embeddings/all/1.0.0"

SYNTHETIC = Source(path=SAMPLE)
XQUAD = Source(
    path=str(DATA / "xquad" / "en.json"),
    rows=TRAINED_ARTICLES,
    task="Given a question, retrieve Wikipedia passages that answer the question",
)
STSB = Source(path=str(DATA / "stsb" / "en-train.csv"), min_score=4.0, task="Retrieve semantically similar text.")
UNSEEN = EvalSet(name="unseen-tasks", sources=(Source(path=SAMPLE, split="heldout"),))
COLUMNS = {
    "Class.": ("banking77",),
    "STS": ("stsb-en",),
    "Retr.": ("xquad-en", "xquad-de", "xquad-es"),
    "Unseen tasks": ("eval/unseen-tasks/ndcg@10",),
}


def tatoeba(language: str) -> Source:
    pair = DATA / "tatoeba" / f"{language}-eng.{language}"
    return Source(
        path=str(pair), positives=str(pair.with_suffix(".eng")), rows=TRAINED_PAIRS, task="Retrieve parallel sentences."
    )


def run(train: tuple[Source, ...], **changes) -> TrainConfig:
    """A run of the small scale; its workdir and seed are the experiment's."""
    config = TrainConfig(
        workdir="runs/small",
        steps=30,
        batch_size=32,
        model=Pretrained(base=MINILM, dtype="float32"),
        lora=LoraConfig(rank=16, alpha=32.0, dropout=0.0),
        data=DataConfig(train=train, max_length=128),
        eval=(UNSEEN,),
        packing=PackingConfig(widths=(128,)),
        optim=OptimConfig(peak_lr=2e-4, warmup_steps=5, weight_decay=0.1),
        temperature=0.05,
        eval_every=1000,
        checkpoint_every=1000,
    )
    return dataclasses.replace(config, **changes)


def bare(train: tuple[Source, ...], *, steps: int, **data) -> TrainConfig:
    """A run of all weights on bare texts, without instructions; `data`: fields of its DataConfig."""
    plain = {"query_prompt": "", "passage_prompt": "", "max_length": 128, "max_negatives": 0}
    return run(
        train,
        steps=steps,
        lora=None,
        data=DataConfig(train=train, **{**plain, **data}),
        eval=(),
        optim=OptimConfig(peak_lr=5e-5, warmup_steps=5, weight_decay=0.01),
    )


def prepare() -> None:
    """Make the sample's dataset and the held-out tasks, where they are not there yet."""
    from benchmarks.finetune_data import heldout

    if not Path(SAMPLE).exists():
        synthesize.synthesize(load_config("configs/synthesize_sample.py"))
        package.package(load_config("configs/package_sample.py"))
    MADE.mkdir(parents=True, exist_ok=True)
    if not (heldout(MADE) / "banking77").exists():
        (HELDOUT / "banking77").mkdir()
        for part in ("train", "test"):
            few(DATA / "banking77" / f"{part}.csv", HELDOUT / "banking77" / f"{part}.csv")


def few(path: Path, to: Path) -> None:
    """The first rows of each class: its texts are most of what a run encodes."""
    with path.open(encoding="utf-8", newline="") as file, to.open("w", encoding="utf-8", newline="") as kept:
        rows = csv.DictReader(file)
        writer, seen = csv.DictWriter(kept, rows.fieldnames), collections.Counter()
        writer.writeheader()
        for row in rows:
            seen[row["category"]] += 1
            if seen[row["category"]] <= A_CLASS:
                writer.writerow(row)
