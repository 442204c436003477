"""Table 5: what else the model is made of, each ablation on synthetic data and MS MARCO."""

from pathlib import Path

import english_mteb
import llama2
import mean_pooling
import msmarco
import no_instruction
import rank_8
import rank_32
import synthetic_msmarco
import task_type_prefix
import weighted_mean_pooling

from e5jax.rows import Row, Table


BASE = "synthetic + msmarco"
ROWS = {
    "w/ LLaMA-2 7b init.": (llama2, "76.2 48.1 85.1 58.9 49.6 81.2 30.8 62.9"),
    "w/ msmarco data only": (msmarco, "71.6 47.1 86.1 58.8 54.4 79.5 31.7 62.7"),
    "w/ mean pooling": (mean_pooling, "77.0 48.9 86.1 59.2 52.4 81.4 30.8 64.1"),
    "w/ weighted mean": (weighted_mean_pooling, "77.0 49.0 86.1 59.2 52.0 81.4 30.2 64.0"),
    "w/ LoRA r=8": (rank_8, "78.4 50.3 87.1 59.3 53.0 81.0 31.7 64.8"),
    "w/ LoRA r=32": (rank_32, "78.4 50.3 87.4 59.5 52.2 81.2 30.6 64.6"),
    "w/o instruction": (no_instruction, "72.3 47.1 82.6 56.3 48.2 76.7 30.7 60.3"),
    "w/ task type prefix": (task_type_prefix, "71.1 46.5 79.7 54.0 52.7 73.8 30.0 60.3"),
}
# How these two are asked: as they were trained.
MEASURED = {
    "w/o instruction": {"prompts": "none"},
    "w/ task type prefix": {"prompts": str(Path(__file__).with_name("task_type_prefix.json"))},
}


def get_config() -> Table:
    ablations = [
        Row(
            name=name,
            train=run.get_config(),
            against=BASE,
            measured=MEASURED.get(name, {}),
            paper=english_mteb.paper(line),
        )
        for name, (run, line) in ROWS.items()
    ]
    base = Row(
        name=BASE,
        train=synthetic_msmarco.get_config(),
        paper=english_mteb.paper("78.3 49.9 87.1 59.5 52.2 81.2 32.7 64.5"),
    )
    return Table(
        title="Table 5: ablations",
        about="Another base, other data, pooling, ranks and instructions, one at a time.",
        columns=english_mteb.columns(),
        average="tasks",
        rows=(base, *ablations),
    )
