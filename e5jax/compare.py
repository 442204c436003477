"""Is the difference between two evaluations more than chance? Paired bootstrap over the examples of each task.

Both models were measured on the same examples, so those are drawn with replacement, the same ones for both, and the
difference of the two scores is taken again each time; the middle 95 % of the differences are the interval (Efron and
Tibshirani 1993, percentile method). A draw is kept as how often each example is in it, [R, N] counts: a mean is then a
product, and the ranks that Spearman's correlation needs come from running sums, without sorting again.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from e5jax import files, pictures
from e5jax.errors import UserError
from e5jax.results import Results, TaskResult


RESAMPLES = 2_000
LEVEL = 0.95
SEED = 0
BLOCK = 1_000_000  # counts held at once


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One task in two evaluations."""

    task: str
    metric: str
    n: int
    a: float
    b: float
    difference: float
    """b - a."""
    interval: tuple[float, float] | None
    """Of the difference; None where `said` tells why there is none."""
    inside: bool | None
    """Whether 0 lies in the interval."""
    said: str


def compare(a: Results, b: Results) -> list[Difference]:
    """The tasks that both have, in a's order. Raises UserError where there is none."""
    both = [(result, other) for result in a.results if (other := b.find(result.task)) is not None]
    both = [(result, other) for result, other in both if result.metric == other.metric]
    if not both:
        has = lambda run: ", ".join(f"{result.task} ({result.metric})" for result in run.results) or "nothing"
        raise UserError(f"no task in common: {a.model} has {has(a)}; {b.model} has {has(b)}")
    return [_difference(*pair) for pair in both]


def write(folder: Path, a: Results, b: Results) -> list[Difference]:
    """compare.json, compare.md and compare.png of two evaluations in `folder`."""
    rows = compare(a, b)
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"resamples": RESAMPLES, "level": LEVEL, "seed": SEED}
    stored = [dataclasses.asdict(row) for row in rows]
    files.write_json(folder / "compare.json", {"a": a.model, "b": b.model, **settings, "differences": stored})
    files.write_text(folder / "compare.md", report(a.model, b.model, rows))
    title = f"B − A     A: {pictures.short_name(a.model)}     B: {pictures.short_name(b.model)}"
    names, differences = [row.task for row in rows], [row.difference for row in rows]
    pictures.draw_intervals(names, differences, [row.interval for row in rows], title, folder / "compare.png")
    return rows


def report(a: str, b: str, rows: list[Difference]) -> str:
    """Markdown: a row a task, and how to read it."""
    lines = [
        f"# {b} against {a}",
        "",
        "| task | metric | n | A | B | B − A | 95 % interval | |",
        "|---|---|---:|---:|---:|---:|:---:|---|",
    ]
    for row in rows:
        interval = "–" if row.interval is None else "{:+.4f} … {:+.4f}".format(*row.interval)
        numbers = f"{row.n:,} | {row.a:.4f} | {row.b:.4f} | {row.difference:+.4f}"
        lines.append(f"| {row.task} | {row.metric} | {numbers} | {interval} | {row.said} |")
    tried = sum(row.interval is not None for row in rows)
    lines += ["", f"- A: `{a}`", f"- B: `{b}`"]
    lines += [f"- Intervals: paired bootstrap over the examples of a task, {RESAMPLES:,} resamples, seed {SEED}."]
    if tried >= 1 / (1 - LEVEL):  # expected: at least one
        lines += [f"- Of {tried} such intervals about {tried * (1 - LEVEL):.0f} would leave 0 out by chance alone."]
    return "\n".join(lines) + "\n"


def _difference(a: TaskResult, b: TaskResult) -> Difference:
    reason = _why_no_interval(a, b)
    interval = None if reason else _interval(a.examples, b.examples)
    if interval is None:
        inside, said = None, f"no interval: {reason}"
    else:
        inside = bool(interval[0] <= 0 <= interval[1])
        said = "no clear difference" if inside else "B is higher" if b.value > a.value else "A is higher"
    return Difference(
        task=a.task,
        metric=a.metric,
        n=a.n,
        a=a.value,
        b=b.value,
        difference=b.value - a.value,
        interval=interval,
        inside=inside,
        said=said,
    )


def _why_no_interval(a: TaskResult, b: TaskResult) -> str:
    """In words, or "" where the examples can be resampled side by side."""
    for name, result in (("A", a), ("B", b)):
        if not result.examples:
            return f"{name} has no scores of single examples"
    if set(a.examples) != set(b.examples):
        return "the examples were scored in different ways"
    sizes = [len(next(iter(result.examples.values()))) for result in (a, b)]
    if sizes[0] != sizes[1]:
        return f"A has {sizes[0]:,} examples, B {sizes[1]:,}"
    if sizes[0] < 2:
        return "a single example"
    if a.data != b.data or not np.array_equal(a.examples.get("gold"), b.examples.get("gold")):
        return "the examples are not the same"
    for name, result in (("A", a), ("B", b)):
        once = _score(result.examples, np.ones((1, sizes[0]), np.int64))[0]
        # The mean over languages of unequal size, say: what would be resampled is not what was reported.
        if not abs(once - result.value) < 1e-3:
            return f"the examples of {name} give {once:.4f} together, not {result.value:.4f}"
    return ""


def _interval(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> tuple[float, float]:
    n = len(next(iter(a.values())))
    differences = [_score(b, counts_RN) - _score(a, counts_RN) for counts_RN in draws(n)]
    tail = 50 * (1 - LEVEL)
    low, high = np.nanpercentile(np.concatenate(differences), [tail, 100 - tail])  # nan: one value drawn n times
    return float(low), float(high)


def draws(n: int) -> Iterator[np.ndarray]:
    """How often each of `n` examples is in each of `RESAMPLES` draws of n with replacement -> blocks of int [R, n]."""
    rng = np.random.default_rng(SEED)
    block = max(1, BLOCK // n)
    for first in range(0, RESAMPLES, block):
        rows = min(block, RESAMPLES - first)
        drawn_RN = rng.integers(n, size=(rows, n)) + n * np.arange(rows)[:, None]
        yield np.bincount(drawn_RN.ravel(), minlength=rows * n).reshape(rows, n)


def _score(examples: dict[str, np.ndarray], counts_RN: np.ndarray) -> np.ndarray:
    """The task's score in each draw -> [R]: a mean, or Spearman's correlation."""
    if "score" in examples:
        return counts_RN @ examples["score"].astype(np.float64) / counts_RN.shape[1]
    return spearman(examples["predicted"], examples["gold"], counts_RN)


def spearman(x_N: np.ndarray, y_N: np.ndarray, counts_RN: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation in each draw -> [R]; ties share their mean rank; nan where all values are equal."""
    n = counts_RN.shape[1]
    rx_RN, ry_RN = (_ranks(values, counts_RN) - (n + 1) / 2 for values in (x_N, y_N))  # the mean rank is always this
    dot = lambda u_RN, v_RN: np.einsum("RN,RN,RN->R", u_RN, v_RN, counts_RN)
    with np.errstate(invalid="ignore"):
        return dot(rx_RN, ry_RN) / np.sqrt(dot(rx_RN, rx_RN) * dot(ry_RN, ry_RN))


def _ranks(values_N: np.ndarray, counts_RN: np.ndarray) -> np.ndarray:
    """The mean rank of each example's value within each draw, from 1 -> [R, N]."""
    _, group_N = np.unique(values_N, return_inverse=True)
    order = np.argsort(group_N, kind="stable")
    starts = np.searchsorted(group_N[order], np.arange(group_N.max() + 1))
    size_RG = np.add.reduceat(counts_RN[:, order], starts, axis=1)
    rank_RG = np.cumsum(size_RG, axis=1) - (size_RG - 1) / 2
    return rank_RG[:, group_N]
