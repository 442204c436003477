"""The training runs of rehearsal.sh: a base, then two stages of LoRA beside it ($STAGE; $OUTPUT is its folder)."""

import dataclasses
import json
import os
from pathlib import Path

from e5jax.config import (
    DataConfig,
    EvalSet,
    FromScratch,
    LoraConfig,
    OptimConfig,
    PackingConfig,
    Pretrained,
    TrainConfig,
)
from e5jax.decoder import DecoderConfig
from e5jax.records import Source, read


OUTPUT = Path(os.environ["OUTPUT"])
SAMPLE = str(OUTPUT / "sample" / "dataset" / "synthetic_text_embeddings" / "all" / "1.0.0")
UNSEEN = Source(path=SAMPLE, split="heldout")
NQ, NLI = (Source(path=str(OUTPUT / "public" / f"{name}.jsonl")) for name in ("nq", "nli"))
QUORA = Source(path=str(OUTPUT / "mined" / "negatives.jsonl"))
TINY_MISTRAL = DecoderConfig(
    family="mistral",
    vocab_size=2048,
    dim=128,
    hidden=256,
    layers=1,
    heads=4,
    kv_heads=2,
    head_dim=32,
    window=128,
    rope_theta=1e4,
    norm_eps=1e-5,
    qk_norm=False,
)


def base() -> TrainConfig:
    """Every weight of a tiny decoder, on the synthetic data."""
    return TrainConfig(
        workdir="runs/rehearsal/base",
        steps=40,
        batch_size=32,
        model=FromScratch(architecture=TINY_MISTRAL),
        lora=None,
        data=DataConfig(train=(Source(path=SAMPLE),), max_length=128),
        eval=(EvalSet(name="unseen-tasks", sources=(UNSEEN,)),),
        packing=PackingConfig(widths=(128,)),
        optim=OptimConfig(peak_lr=1e-3, warmup_steps=10),
        temperature=0.2,
        eval_every=1000,
        checkpoint_every=20,
    )


def stage(train: tuple[Source, ...]) -> TrainConfig:
    """Adapters beside the base, on synthetic and public data in one mixture."""
    return dataclasses.replace(
        base(),
        workdir="runs/rehearsal/stage",
        model=Pretrained(base=os.environ["BASE"], dtype="float32"),
        lora=LoraConfig(rank=8, alpha=16.0, dropout=0.0),
        data=DataConfig(train=train, max_length=128, max_negatives=2),
        optim=OptimConfig(peak_lr=3e-4, warmup_steps=5),
        batch_size=16,
    )


def first() -> TrainConfig:
    """Retrieval: what scores above the positive by more than 0.1 is taken for a false negative."""
    config = stage((Source(path=SAMPLE, weight=3.0), dataclasses.replace(NQ, weight=1.0)))
    return dataclasses.replace(config, contrast=dataclasses.replace(config.contrast, false_negative_margin=0.1))


def second() -> TrainConfig:
    """Everything; of paraphrases and entailments another query's passage may be as right."""
    beside = (dataclasses.replace(source, weight=1.0, own_negatives_only=True) for source in (NLI, QUORA))
    return stage((Source(path=SAMPLE, weight=2.0), dataclasses.replace(NQ, weight=1.0), *beside))


STAGES = {"0": base, "1": first, "2": second}


def get_config() -> TrainConfig:
    return STAGES[os.environ.get("STAGE", "0")]()


def write_task(folder: Path) -> None:
    """The sample's held-out tasks as a retrieval task in BEIR's form, for `evaluate --data-dir`."""
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    records = [record for _, record in read(UNSEEN)]
    number = {text: f"p{i}" for i, text in enumerate(dict.fromkeys(r.positive for r in records))}
    lines = {
        "corpus.jsonl": [json.dumps({"_id": id_, "text": text}) for text, id_ in number.items()],
        "queries.jsonl": [json.dumps({"_id": f"q{i}", "text": r.query}) for i, r in enumerate(records)],
        "qrels/test.tsv": [
            "query-id\tcorpus-id\tscore",
            *(f"q{i}\t{number[r.positive]}\t1" for i, r in enumerate(records)),
        ],
    }
    for name, rows in lines.items():
        (folder / name).write_text("".join(row + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    write_task(OUTPUT / "tasks" / "unseen")
