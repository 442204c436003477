"""The figures of two trainers side by side: what each step took, what the results score, one table."""

import dataclasses
import statistics
from collections.abc import Sequence

from benchmarks.finetune_data import TASKS, Order
from e5jax.errors import FailedError


LEFT_OUT = 2  # steps at the start


@dataclasses.dataclass(frozen=True, kw_only=True)
class Side:
    """One trainer's run."""

    steps: int
    seconds_per_step: float
    """Mean of the steps behind the first `LEFT_OUT`."""
    tokens_per_second: float
    """Real tokens, of the same steps."""
    computed_share: float | None
    """Real tokens among those computed, padding included; None where it is not known."""
    whole_seconds: float
    """The command: imports, tokenising, compiling, training, saving."""
    peak_gb: float
    last_loss: float
    """Mean of the last tenth of the steps."""


def side(ran: dict, tokens: Sequence[int], seconds: Sequence[float], losses: Sequence[float], padded) -> Side:
    """The figures of a run from what each of its steps took. Raises FailedError where there are too few."""
    if len(seconds) <= LEFT_OUT:
        raise FailedError(f"{len(seconds)} steps are too few: the first {LEFT_OUT} do not count")
    counted, taken = sum(tokens[LEFT_OUT:]), sum(seconds[LEFT_OUT:])
    return Side(
        steps=len(seconds),
        seconds_per_step=taken / len(seconds[LEFT_OUT:]),
        tokens_per_second=counted / taken,
        computed_share=None if padded is None else counted / sum(padded[LEFT_OUT:]),
        whole_seconds=ran["seconds"],
        peak_gb=ran["peak_bytes"] / 1e9,
        last_loss=statistics.mean(losses[-max(1, len(losses) // 10) :]),
    )


def table(
    scores: dict[str, dict[str, float]], sides: dict[str, Side], order: Order, batch_size: int, max_length: int
) -> str:
    """Everything in one Markdown table: a column for the base, for e5jax, for each peer."""
    columns = list(scores)
    row = lambda name, cells: f"| {name} | " + " | ".join(cells) + " |"
    lines = [row("", columns), "|---|" + "---:|" * len(columns)]
    for group, tasks in TASKS.items():
        means = [statistics.mean(scores[column][task] for task in tasks) for column in columns]
        lines.append(row(f"**{group}**, mean of {len(tasks)}", [f"**{mean:.4f}**" for mean in means]))
        for task in tasks:
            lines.append(row(f"· {task.rpartition('-')[2]}", [f"{scores[column][task]:.4f}" for column in columns]))
    figures = {
        "real tokens a second": lambda s: f"{s.tokens_per_second:,.0f}",
        "seconds a step": lambda s: f"{s.seconds_per_step:.2f}",
        "peak memory, GB": lambda s: f"{s.peak_gb:.2f}",
        "whole command, seconds": lambda s: f"{s.whole_seconds:,.0f}",
        "steps": lambda s: f"{s.steps:,}",
        "loss of the last tenth": lambda s: f"{s.last_loss:.4f}",
        "real tokens of those computed": lambda s: "" if s.computed_share is None else f"{s.computed_share:.0%}",
    }
    for name, show in figures.items():
        lines.append(row(name, [show(sides[column]) if column in sides else "" for column in columns]))
    about = (
        f"{batch_size} pairs a step, {sum(order.tokens) / len(order.tokens):,.0f} tokens in the mean; "
        f"{order.shared:.1%} of the records share their positive with another of their batch; "
        f"{order.truncated:,} texts of the training data were cut to {max_length} tokens.\n"
    )
    return "\n".join([*lines, "", about])


def verdicts(scores: dict[str, dict[str, float]], sides: dict[str, Side], peer: str) -> dict[str, float]:
    """e5jax beside one peer: by how much a group's mean score is better, times the speed, share of the memory."""
    mean = lambda name, tasks: statistics.mean(scores[name][task] for task in tasks)
    better = {group: mean("e5jax", tasks) - mean(peer, tasks) for group, tasks in TASKS.items()}
    worst = min(scores["e5jax"][task] - scores[peer][task] for tasks in TASKS.values() for task in tasks)
    ours, theirs = sides["e5jax"], sides[peer]
    return {
        **better,
        "worst task": worst,
        "tokens per second, ratio": ours.tokens_per_second / theirs.tokens_per_second,
        "seconds a step, ratio": theirs.seconds_per_step / ours.seconds_per_step,
        "peak memory, ratio": ours.peak_gb / theirs.peak_gb,
    }
