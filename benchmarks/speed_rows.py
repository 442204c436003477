"""What is measured and how good it must be; rounds of A B A B; rows and their table."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence


@dataclasses.dataclass(frozen=True, kw_only=True)
class Goal:
    """A row: what it measures, what it must reach, what it aims at."""

    what: str
    unit: str
    must: float
    aim: float
    at_most: bool = False
    """The figure must not be higher, instead of not lower."""


def _goal(what, unit, must, aim, at_most=False):
    return Goal(what=what, unit=unit, must=must, aim=aim, at_most=at_most)


TOKENS = "tokens/s"
GOALS = {
    "C1a": _goal("LoRA step, real lengths, against the peer's best mini-batch", TOKENS, 1.3, 1.8),
    "C1b": _goal("LoRA step, real lengths, against the peer's default mini-batch", TOKENS, 2.0, 3.0),
    "C2": _goal("LoRA step, all texts of 128 tokens, both GradCache", TOKENS, 1.0, 1.2),
    "C3": _goal("the same, ours keeps its activations", TOKENS, 1.3, 1.5),
    "C4": _goal("encode a corpus", TOKENS, 1.1, 1.3),
    "C5": _goal("encode instructed queries", TOKENS, 1.8, 2.5),
    "C6-train": _goal("matrix FLOP/s of a step over the roofline", "share", 0.65, 0.80),
    "C6-encode": _goal("matrix FLOP/s of encoding over the roofline", "share", 0.75, 0.85),
    "C7-train": _goal("useful tokens of those computed, one shape", "share", 0.93, 0.98),
    "C7-encode": _goal("useful tokens of those computed, at most 8 shapes", "share", 0.95, 0.98),
    "C8": _goal("our bfloat16 step over our float32 step", TOKENS, 1.35, 1.6),
    "C9": _goal("peak memory when the batch doubles, chunked", "times", 1.10, 1.05, at_most=True),
    "C10": _goal("LoRA step against merged weights, dW and padding to the maximum", TOKENS, 2.0, 2.5),
    "G1": _goal("whole step at 7B, best schedule", TOKENS, 10e3, 13e3),
    "G2": _goal("matrix FLOP/s of that step over the peak", "share", 0.45, 0.52),
    "G3": _goal("seconds of the whole step", "s", 45.0, 35.0, at_most=True),
    "G4": _goal("encode passages at 7B", TOKENS, 30e3, 40e3),
    "G5": _goal("LoRA step at 7B, packed over padded to 512", TOKENS, 4.0, 6.0),
    "G6": _goal("LoRA step at 7B against sentence-transformers on the same card", TOKENS, 1.5, 2.5),
}
SUITES = {
    "cpu": tuple(name for name in GOALS if name.startswith("C")),
    "gpu": tuple(name for name in GOALS if name.startswith("G")),
    "tpu": tuple(name for name in GOALS if name.startswith("G")),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One row of the result. What was not measured is None, and `note` says why."""

    name: str
    model: str
    ours: float | None
    peer: float | None
    ratio: float | None
    unit: str
    limit: float | None
    """The most that is possible, in the unit of `ours`."""
    spread: tuple[float, float] | None
    """Lowest and highest of the rounds: of the ratio where there is one, else of `ours`."""
    must: float
    aim: float
    met: bool | None
    note: str


def row(
    name: str,
    model: str,
    *,
    ours: float | None,
    peer: float | None,
    ratio: float | None,
    limit: float | None,
    spread: tuple[float, float] | None,
    note: str,
) -> Row:
    """A row with its goal; the ratio is judged where there is one, else `ours`."""
    goal = GOALS[name]
    figure = ours if ratio is None else ratio
    met = None if figure is None else (figure <= goal.must if goal.at_most else figure >= goal.must)
    return Row(
        name=name,
        model=model,
        ours=ours,
        peer=peer,
        ratio=ratio,
        unit=goal.unit,
        limit=limit,
        spread=spread,
        must=goal.must,
        aim=goal.aim,
        met=met,
        note=note,
    )


def compared(
    name: str, model: str, tokens: int, ours: Sequence[float], peer: Sequence[float], limit: float | None, note: str
) -> Row:
    """Seconds of both sides in the same rounds, for the same real tokens."""
    ratios = ratios_of(ours, peer)
    return row(
        name,
        model,
        ours=tokens / statistics.median(ours),
        peer=tokens / statistics.median(peer),
        ratio=statistics.median(ratios),
        limit=limit,
        spread=(min(ratios), max(ratios)),
        note=note,
    )


def measured(name: str, model: str, values: Sequence[float], limit: float | None, note: str) -> Row:
    """A figure of ours alone, from every round."""
    return row(
        name,
        model,
        ours=statistics.median(values),
        peer=None,
        ratio=None,
        limit=limit,
        spread=(min(values), max(values)),
        note=note,
    )


def absent(name: str, model: str, why: str) -> Row:
    """A row that has no figure."""
    return row(name, model, ours=None, peer=None, ratio=None, limit=None, spread=None, note=why)


def ratios_of(ours: Sequence[float], peer: Sequence[float]) -> list[float]:
    """How many times faster ours was, round by round."""
    return [theirs / mine for mine, theirs in zip(ours, peer, strict=True)]


def interleave(sides: Mapping[str, Callable[[], float]], rounds: int, pause: float) -> dict[str, list[float]]:
    """What each side returns in every round, one after the other within a round: A B A B.

    `pause`: seconds of rest before each, in which the threads of the side before go to sleep.
    """
    values = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            time.sleep(pause)
            values[name].append(side())
    return values


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown."""
    lines = [
        "| row | model | what | ours | peer | ratio | spread | must | aim | met | limit | unit | note |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|---|---:|---|---|",
    ]
    for r in rows:
        spread = "" if r.spread is None else f"{number(r.spread[0])} … {number(r.spread[1])}"
        sign = "≤ " if GOALS[r.name].at_most else ""
        cells = (
            *(r.name, r.model, GOALS[r.name].what, number(r.ours), number(r.peer), number(r.ratio), spread),
            *(sign + number(r.must), sign + number(r.aim), {True: "yes", False: "no", None: ""}[r.met]),
            *(number(r.limit), r.unit, " ".join(r.note.replace("|", "/").split())),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def number(value: float | None) -> str:
    """Three digits of a small number, whole ones of a large one."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}" if abs(value) >= 10 else f"{value:.2f}"
