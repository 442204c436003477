"""The peer of benchmarks/finetune.py, sentence-transformers' trainer: `python -m benchmarks.finetune_peer FILE.json`.

SentenceTransformerTrainer with MultipleNegativesRankingLoss, on the CPU in float32, without dropout. The trainer's own
AdamW has what e5jax's has: betas, epsilon 1e-8, clipping by the global norm, weight decay on matrices and embeddings
but not on biases and LayerNorm. Only the schedule is put in, since theirs starts at a rate of zero.

Writes OUTPUT/model and OUTPUT/facts.json: for each step the tokens, the tokens with padding, the loss, and the seconds
since the end of the step before.
"""

import dataclasses
import itertools
import json
import os
import sys
import time
from pathlib import Path


@dataclasses.dataclass(frozen=True, kw_only=True)
class Peer:
    """What the peer is told, as JSON."""

    model: str
    """A folder of sentence-transformers."""
    batches: str
    """Rows {"source", "query", "positive"}, one batch after the other."""
    output: str
    steps: int
    batch_size: int
    max_length: int
    """Tokens of a text, special ones included."""
    temperature: float
    peak_lr: float
    warmup_steps: int
    weight_decay: float
    clip_norm: float
    b1: float
    b2: float
    own_batches: bool
    """Not the batches of the file but the trainer's own of its records: of one source, and no text twice in one
    (BatchSamplers.NO_DUPLICATES), as its documentation advises for this loss."""
    merged: bool
    """Queries and positives in one forward pass, padded to the longest of both, as it does by itself."""


def schedule_factor(count: int, warmup_steps: int, steps: int) -> float:
    """e5jax.optim.learning_rate over its peak, at the update after `count` others."""
    warm = (count + 1) / max(1, warmup_steps)
    decay = (steps - count) / max(1, steps - warmup_steps)
    return min(max(min(warm, decay), 0.0), 1.0)


def datasets_of(peer: Peer):
    """The rows as one dataset in order, or one for each source."""
    from datasets import Dataset, DatasetDict

    with open(peer.batches, encoding="utf-8") as file:
        rows = [json.loads(line) for line in itertools.islice(file, peer.steps * peer.batch_size)]
    as_dataset = lambda rows: Dataset.from_dict({name: [row[name] for row in rows] for name in ("query", "positive")})
    if not peer.own_batches:
        return as_dataset(rows)
    sources = sorted({row["source"] for row in rows})
    return DatasetDict({str(source): as_dataset([r for r in rows if r["source"] == source]) for source in sources})


def open_model(peer: Peer):
    """The model without dropout, its texts cut where ours are."""
    from sentence_transformers import SentenceTransformer

    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = SentenceTransformer(
        peer.model, device="cpu", model_kwargs={"use_safetensors": True, "dtype": "float32"}, config_kwargs=off
    )
    model.max_seq_length = peer.max_length
    return model


def finetune(peer: Peer) -> dict:
    """Train, save, and say what each step took: the facts of facts.json."""
    import torch
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.base.losses.merged_forward import column_merging_disabled
    from sentence_transformers.base.sampler import BatchSamplers, DefaultBatchSampler, MultiDatasetBatchSamplers
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    from transformers import TrainerCallback

    tokens, padded, ends = [], [], []

    class Loss(MultipleNegativesRankingLoss):
        """Counts what it is given."""

        def forward(self, sentence_features, labels):
            features = list(sentence_features)
            tokens.append(sum(int(column["attention_mask"].sum()) for column in features))
            rows, widths = zip(*(column["input_ids"].shape for column in features), strict=True)
            padded.append(sum(rows) * max(widths) if peer.merged else sum(map(int.__mul__, rows, widths)))
            if peer.merged:
                return super().forward(features, labels)
            with column_merging_disabled():
                return super().forward(features, labels)

    class InOrder(DefaultBatchSampler):
        """Rows 0, 1, 2 … in batches."""

        def __iter__(self):
            order = iter(range(peer.steps * self.batch_size))
            return iter(lambda: list(itertools.islice(order, self.batch_size)), [])

    class Clock(TrainerCallback):
        """When each step ended."""

        def on_train_begin(self, *_, **__):
            ends.append(time.perf_counter())

        def on_step_end(self, *_, **__):
            ends.append(time.perf_counter())

    class Trainer(SentenceTransformerTrainer):
        """With the schedule of e5jax."""

        def create_scheduler(self, num_training_steps, optimizer=None):
            factor = lambda count: schedule_factor(count, peer.warmup_steps, peer.steps)
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, factor)
            return self.lr_scheduler

    output = Path(peer.output)
    model = open_model(peer)
    trainer = Trainer(
        model=model,
        args=SentenceTransformerTrainingArguments(
            output_dir=str(output / "trainer"),
            max_steps=peer.steps,
            per_device_train_batch_size=peer.batch_size,
            learning_rate=peer.peak_lr,
            weight_decay=peer.weight_decay,
            max_grad_norm=peer.clip_norm,
            adam_beta1=peer.b1,
            adam_beta2=peer.b2,
            adam_epsilon=1e-8,
            batch_sampler=BatchSamplers.NO_DUPLICATES if peer.own_batches else InOrder,
            multi_dataset_batch_sampler=MultiDatasetBatchSamplers.PROPORTIONAL,
            dataloader_drop_last=True,
            dataloader_pin_memory=False,
            use_cpu=True,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=datasets_of(peer),
        loss=Loss(model, scale=1 / peer.temperature),
        callbacks=[Clock()],
    )
    trainer.train()
    model.save_pretrained(str(output / "model"), create_model_card=False)
    weights = {name: list(p.shape) for name, p in model.named_parameters()}
    decayed = {name for name in trainer.get_decay_parameter_names(model) if name in weights}
    return {
        "tokens": tokens,
        "padded": padded,
        "seconds": [after - before for before, after in itertools.pairwise(ends)],
        "loss": [row["loss"] for row in trainer.state.log_history if "loss" in row],
        "learning_rate": [row["learning_rate"] for row in trainer.state.log_history if "loss" in row],
        "decayed": sorted(decayed),
        "not_decayed": sorted(set(weights) - decayed),
        "threads": torch.get_num_threads(),
    }


def main() -> int:
    """Run what the JSON file says."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    peer = Peer(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    Path(peer.output).mkdir(parents=True, exist_ok=True)
    facts = finetune(peer)
    (Path(peer.output) / "facts.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
