"""Pictures of a dataset: its mix beside the paper's, lengths of texts, what was rejected."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from e5jax.pictures import COLORS, pyplot, save


LANGUAGES = 20
"""Those that get a bar of their own."""
PARTS = {"query": COLORS[0], "positive": COLORS[2], "negative": COLORS[5]}


def draw_mix(ours: Mapping[str, float], paper: Mapping[str, float], path: Path) -> None:
    """Bars: the share of each type, with a line where the paper has it."""
    _draw_shares(ours, {kind: paper[kind] for kind in ours}, "Examples by type", path)


def draw_languages(ours: Mapping[str, float], paper: Mapping[str, float], path: Path) -> None:
    """Bars: the most frequent languages and all others, with a line where the paper has them."""
    first = sorted(ours, key=lambda name: -ours[name])[:LANGUAGES]
    rest = [name for name in ours if name not in first]
    other = f"{len(rest)} others"
    mine = {name: ours[name] for name in first} | ({other: sum(ours[name] for name in rest)} if rest else {})
    theirs = {name: paper.get(name, 0.0) for name in first}
    theirs |= {other: sum(share for name, share in paper.items() if name not in first)} if rest else {}
    _draw_shares(mine, theirs, f"Examples by language ({len(ours)})", path, sum(paper.values()))


def _draw_shares(ours, paper, title: str, path: Path, whole: float | None = None) -> None:
    plt = pyplot()
    total, whole = sum(ours.values()), whole or sum(paper.values()) or 1  # the paper has none of a grounded set
    figure, axis = plt.subplots(figsize=(7.5, 1.3 + 0.26 * len(ours)), layout="constrained")
    shares = [100 * value / total for value in ours.values()]
    axis.barh(range(len(ours)), shares, height=0.7, color=COLORS[0], label="this dataset")
    marks = [100 * paper[name] / whole for name in ours]
    at = np.arange(len(ours))
    axis.vlines(marks, at - 0.45, at + 0.45, color="black", linewidth=1.6, label="paper")
    for y, (share, mark, value) in enumerate(zip(shares, marks, ours.values(), strict=True)):
        axis.text(max(share, mark) + 0.6, y, f"{share:.1f} %  ({value:,.0f})", va="center", fontsize=7.5)
    axis.set_yticks(at, list(ours))
    axis.set_ylim(len(ours) - 0.4, -0.6)
    axis.set_xlim(0, 1.22 * max(*shares, *marks))
    axis.set_xlabel("share of the examples, %", fontsize=9)
    _finish(figure, axis, f"{title}: {total:,.0f} examples", path)


def draw_lengths(measured: Mapping[str, Mapping[str, Sequence[int]]], unit: str, path: Path) -> None:
    """A row a type and part: median, middle half and 5 to 95 %, on a logarithmic axis."""
    plt = pyplot()
    rows = [(kind, part, values) for kind, parts in measured.items() for part, values in parts.items()]
    places, y = [], 0.0
    for i, (kind, *_) in enumerate(rows):
        y += 0.6 if i and rows[i - 1][0] != kind else 0.0
        places.append(y)
        y += 1
    figure, axis = plt.subplots(figsize=(7.5, 1.5 + 0.21 * y), layout="constrained")
    for y, (_, part, values) in zip(places, rows, strict=True):
        low, q1, median, q3, high = np.maximum(np.percentile(values, (5, 25, 50, 75, 95)), 1)
        axis.hlines(y, low, high, color=PARTS[part], linewidth=1.3)
        axis.hlines(y, q1, q3, color=PARTS[part], linewidth=6, label=part)
        axis.plot(median, y, marker="o", markersize=4, color="white", markeredgecolor="black", zorder=3)
        axis.annotate(f"{median:,.0f}", (high, y), (5, 0), textcoords="offset points", va="center", fontsize=7)
    first = [i for i in range(len(rows)) if not i or rows[i - 1][0] != rows[i][0]]
    counts = [sum(kind == rows[i][0] for kind, *_ in rows) for i in first]
    middles = [places[i] + (n - 1) / 2 for i, n in zip(first, counts, strict=True)]
    axis.set_yticks(middles, [rows[i][0] for i in first])
    axis.set_ylim(places[-1] + 0.8, -0.8)
    axis.set_xscale("log")
    ticks = [tick for tick in (1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000) if tick <= 1.5 * axis.get_xlim()[1]]
    axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axis.minorticks_off()
    axis.set_xlabel(f"{unit} of a text: median, middle half, 5 to 95 %", fontsize=9)
    _finish(figure, axis, "Lengths", path)


def draw_rejections(rejected: Mapping[str, Mapping[str, int]], kept: int, path: Path) -> None:
    """Stacked bars: answers by reason, a colour a task type; `kept`: those that passed."""
    plt = pyplot()
    kinds = sorted({kind for by in rejected.values() for kind in by})
    figure, axis = plt.subplots(figsize=(7.5, 1.6 + 0.26 * len(rejected)), layout="constrained")
    at, left = np.arange(len(rejected)), np.zeros(len(rejected))
    for number, kind in enumerate(kinds):
        values = np.array([by.get(kind, 0) for by in rejected.values()])
        axis.barh(at, values, left=left, height=0.7, color=COLORS[number % len(COLORS)], label=kind)
        left += values
    total = left.sum() + kept
    for y, value in enumerate(left):
        axis.text(
            value + 0.01 * left.max(), y, f"{value:,.0f}  ({100 * value / total:.1f} %)", va="center", fontsize=7.5
        )
    axis.set_yticks(at, list(rejected))
    axis.set_ylim(len(rejected) - 0.4, -0.6)
    axis.set_xlim(0, 1.25 * left.max())
    axis.set_xlabel("answers", fontsize=9)
    _finish(figure, axis, f"Not used: {left.sum():,.0f} of {total:,.0f} answers", path)


def _finish(figure, axis, title: str, path: Path) -> None:
    axis.set_title(title, fontsize=10)
    axis.tick_params(labelsize=8)
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="x", alpha=0.3)
    axis.set_axisbelow(True)
    handles = {label: handle for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=6, fontsize=8, frameon=False)
    save(figure, [axis], path)
