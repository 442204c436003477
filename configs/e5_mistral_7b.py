"""E5-mistral-7b-instruct: the paper's full-data run (arXiv 2401.00368, §4.2 and appendix A).

    python -m e5jax.train --config configs/e5_mistral_7b.py --workdir runs/e5_mistral_7b

From the paper: Mistral-7B-v0.1, LoRA of rank 16 on all linear layers, 2,048 queries a step with one hard negative each,
512 tokens, temperature 0.02, AdamW with weight decay 0.1, peak 1e-4 after 100 steps, linear decay, one epoch of about
1.8 million examples. Not in the paper: LoRA's alpha 32 and dropout 0.1 (those of its published adapter), AdamW's betas.

Data: 500,000 synthetic records as a TFDS dataset, 13 public sets (MS MARCO twice) as JSONL or TFDS, in $E5_DATA
(default data/e5), under the names below. Every device holds a copy of the base; `--mesh 1 -1 1` splits it instead. How
much of the batch keeps its activations follows from the devices' memory.
"""

import os

from e5jax.config import DataConfig, EvalSet, OptimConfig, PackingConfig, Pretrained, TrainConfig
from e5jax.records import Source


FOLDER = os.environ.get("E5_DATA", "data/e5")
WIKIPEDIA = "Given a question, retrieve Wikipedia passages that answer the question"
CHINESE = "Given a Chinese search query, retrieve web passages that answer the question"

# File -> (the share of its records that is used, the instruction of records that carry none): appendix A, Table 14.
PUBLIC = {
    "eli5": (0.1, "Provided a user question, retrieve the highest voted answers on Reddit ELI5 forum"),
    "hotpotqa": (1.0, "Given a multi-hop question, retrieve documents that can help answer the question"),
    "fever": (1.0, "Given a claim, retrieve documents that support or refute the claim"),
    "miracl": (1.0, WIKIPEDIA),
    "msmarco_passage": (0.5, "Given a web search query, retrieve relevant passages that answer the query"),
    "msmarco_document": (0.2, "Given a web search query, retrieve relevant documents that answer the query"),
    "nq": (1.0, WIKIPEDIA),
    "nli": (1.0, "Given a premise, retrieve a hypothesis that is entailed by the premise"),
    "squad": (1.0, WIKIPEDIA),
    "triviaqa": (1.0, WIKIPEDIA),
    "quora": (0.1, "Given a question, retrieve questions that are semantically equivalent to the given question"),
    "mrtydi": (1.0, WIKIPEDIA),
    "dureader": (1.0, CHINESE),
    "t2ranking": (0.5, CHINESE),
}
SYNTHETIC = f"{FOLDER}/synthetic"


def public(name: str) -> Source:
    share, task = PUBLIC[name]
    return Source(path=f"{FOLDER}/{name}.jsonl", sample=share, task=task)


def get_config() -> TrainConfig:
    return TrainConfig(
        workdir="runs/e5_mistral_7b",
        steps=879,  # 1.8 million examples, once
        batch_size=2048,
        model=Pretrained(base="mistralai/Mistral-7B-v0.1"),
        data=DataConfig(
            train=(Source(path=SYNTHETIC, split="train[1%:]"), *map(public, PUBLIC)),
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
