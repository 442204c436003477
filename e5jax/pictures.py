"""Pictures of results: bars by task, lines over the steps of a run, differences with their intervals.

Colours are those of Okabe and Ito, which people with any colour vision tell apart.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np


COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#999999")
STEP = re.compile(r"(?P<run>.+)/checkpoints/(?P<step>\d+)/?")
TASKS_A_COLUMN = 28
LINES = 7
"""Tasks that get a line of their own beside the mean."""


def short_name(model: str) -> str:
    """A name that fits a column: the end of a long path."""
    return model if len(model) <= 40 else "…" + model[-39:]


def short_names(models: Sequence[str]) -> list[str]:
    """Short names where they still tell the models apart, else the whole ones."""
    names = [short_name(model) for model in models]
    return names if len(set(names)) == len(names) else list(models)


def draw_scores(
    scores: Mapping[str, Mapping[str, float]], metrics: Mapping[str, str], paper: Mapping[str, float], path: Path
) -> None:
    """{model: {task: score}} as lines where models are two or more checkpoints of one run, else as bars."""
    runs = [match["run"] for match in map(STEP.fullmatch, scores) if match]
    if len(runs) > 1 and len(set(runs)) == 1:
        steps = {int(match["step"]): scores[model] for model in scores if (match := STEP.fullmatch(model))}
        others = {model: row for model, row in scores.items() if not STEP.fullmatch(model)}
        _draw_lines(runs[0], dict(sorted(steps.items())), others, metrics, path)
    else:
        _draw_bars(scores, metrics, paper, path)


def _draw_bars(scores, metrics, paper, path) -> None:
    plt = pyplot()
    tasks, models = list(metrics), list(scores)
    columns = -(-len(tasks) // TASKS_A_COLUMN)
    rows = -(-len(tasks) // columns)
    thick = 0.8 / len(models)
    height = 1.4 + rows * max(0.24, 0.13 * len(models) + 0.06)
    figure, axes = plt.subplots(1, columns, figsize=(7.0 * columns, height), layout="constrained", squeeze=False)
    lowest = min([0.0, *(value for row in scores.values() for value in row.values())])
    shared = len(set(metrics.values())) == 1
    labels = short_names(models)
    for column, axis in enumerate(axes[0]):
        here = tasks[column * rows : (column + 1) * rows]
        for number, model in enumerate(models):
            at = [(i + (number - (len(models) - 1) / 2) * thick, task) for i, task in enumerate(here)]
            at = [(y, scores[model][task]) for y, task in at if task in scores[model]]
            y, values = zip(*at, strict=True) if at else ((), ())
            axis.barh(y, values, height=thick, color=_color(number), label=labels[number])
            if len(tasks) * len(models) <= 60:
                for where, value in at:
                    axis.text(max(value, 0) + 0.008, where, f"{value:.3f}", va="center", fontsize=6.5)
        known = [(row, paper[task]) for row, task in enumerate(here) if task in paper]
        if known:
            at, values = zip(*known, strict=True)
            low, high = np.array(at) - 0.45, np.array(at) + 0.45
            axis.vlines(values, low, high, color="black", linewidth=1.4, label="published")
        axis.set_yticks(range(len(here)), [task if shared else f"{task}  ({metrics[task]})" for task in here])
        axis.set_ylim(rows - 0.4, -0.6)  # the first task on top, rows of all columns in line
        axis.set_xlim(lowest * 1.1, 1.08)
        axis.tick_params(labelsize=8)
        axis.tick_params(axis="y", length=0)
        axis.grid(axis="x", alpha=0.3)
        axis.set_axisbelow(True)
        axis.set_xlabel(metrics[tasks[0]] if shared else "main score (each task's metric in brackets)", fontsize=9)
    figure.suptitle(f"Main score of {_count(len(tasks), 'task')}, {_count(len(models), 'model')}", fontsize=11)
    figure.legend(*_legend(axes[0]), loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    save(figure, axes[0], path)


def _draw_lines(run, steps, others, metrics, path) -> None:
    plt = pyplot()
    tasks = [task for task in metrics if any(task in row for row in steps.values())]
    whole = [task for task in tasks if all(task in row for row in steps.values())]
    figure, axis = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
    few = {"marker": "o", "markersize": 4}
    many = {"color": "#BBBBBB", "linewidth": 0.8, "label": f"each of the {len(tasks)} tasks"}
    for number, task in enumerate(tasks):
        points = [(step, row[task]) for step, row in steps.items() if task in row]
        own = {"color": _color(number), "label": f"{task} ({metrics[task]})"}
        axis.plot(*zip(*points, strict=True), **(few | own if len(tasks) <= LINES else many))
    if len(whole) > 1:
        mean = [np.mean([row[task] for task in whole]) for row in steps.values()]
        label = f"mean of {len(whole)} tasks"
        axis.plot(list(steps), mean, marker="s", markersize=5, color="black", linewidth=2.4, label=label)
    styles = ("--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))
    for number, (model, row) in enumerate(others.items()):
        if whole and all(task in row for task in whole):  # a mean over other tasks would say nothing
            mean = np.mean([row[task] for task in whole])
            label = short_name(model) + (", mean" if len(whole) > 1 else "")
            axis.axhline(mean, color="#555555", linewidth=1.3, linestyle=styles[number % len(styles)], label=label)
    axis.set_title(f"{short_name(run)}: main scores over the steps", fontsize=11)
    axis.set_xlabel("step")
    axis.set_ylabel("score")
    if axis.dataLim.y0 >= 0:  # else as low as the scores go
        axis.set_ylim(bottom=0)
    axis.legend(*_legend([axis]), loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8, frameon=False)
    axis.grid(alpha=0.3)
    save(figure, [axis], path)


def draw_intervals(
    names: Sequence[str],
    differences: Sequence[float],
    intervals: Sequence[tuple[float, float] | None],
    title: str,
    path: Path,
) -> None:
    """A dot a difference with its interval, around zero; hollow where the interval contains 0, grey without one."""
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(7.5, 1.7 + 0.24 * len(names)), layout="constrained")
    # whether 0 lies inside -> (words, how it is drawn)
    looks = {
        False: ("clear difference", {"marker": "o", "color": COLORS[0]}),
        True: ("no clear difference", {"marker": "o", "color": COLORS[5], "markerfacecolor": "white"}),
        None: ("no interval", {"marker": "x", "color": "#888888"}),
    }
    for y, (difference, interval) in enumerate(zip(differences, intervals, strict=True)):
        words, look = looks[None if interval is None else interval[0] <= 0 <= interval[1]]
        if interval is not None:
            axis.hlines(y, *interval, color=look["color"], linewidth=1.8)
        axis.plot(difference, y, linestyle="none", markersize=5.5, zorder=3, label=words, **look)
    axis.axvline(0, color="black", linewidth=1)
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.tick_params(labelsize=8)
    axis.tick_params(axis="y", length=0)
    axis.set_xlabel("difference of scores, with 95 % paired bootstrap interval", fontsize=9)
    axis.set_title(title, fontsize=10)
    axis.grid(axis="x", alpha=0.3)
    figure.legend(*_legend([axis]), loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    save(figure, [axis], path)


def draw_lengths(
    measured: Mapping[str, Mapping[int, float]], published: Mapping[str, Mapping[int, float]], path: Path
) -> None:
    """Passkey accuracy by tokens of a document: {label: {length: 0..1}}, in front of {label: {length: percent}}."""
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(8.5, 4.4), layout="constrained")
    for number, (label, line) in enumerate(measured.items()):
        percent = [100 * value for value in line.values()]
        look = {"color": _color(number), "linewidth": 2, "marker": "o", "markersize": 5, "zorder": 3}
        axis.plot(list(line), percent, label=label, **look)
    for marker, (label, line) in zip(itertools.cycle("v^sD"), published.items(), strict=False):
        look = {"color": "#8C8C8C", "linewidth": 1.3, "marker": marker, "markersize": 4.5, "linestyle": ":"}
        axis.plot(list(line), list(line.values()), label=f"paper, {label}", **look)
    ticks = sorted({length for line in (*measured.values(), *published.values()) for length in line})
    axis.set_xscale("log", base=2)
    axis.set_xticks(ticks, [f"{tick // 1024}k" if tick % 1024 == 0 else str(tick) for tick in ticks])
    axis.minorticks_off()
    axis.set_ylim(-3, 104)
    axis.set_xlabel("tokens of a document")
    axis.set_ylabel("queries answered by the right document, %")
    axis.set_title("Personalised passkey retrieval: 50 queries, 100 documents", fontsize=11)
    axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8, frameon=False)
    axis.grid(alpha=0.3)
    save(figure, [axis], path)


def pyplot():
    """matplotlib, for files alone; imported where a picture is drawn, since it takes a second."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _color(number: int) -> str:
    return COLORS[number % len(COLORS)]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _legend(axes) -> tuple[list, list[str]]:
    """Handles and labels of all panels, each once, what is published last."""
    found = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    labels = sorted(found, key=lambda label: label == "published")
    return [found[label] for label in labels], labels


def save(figure, axes, path: Path) -> None:
    """Write a figure and let go of it. No version of matplotlib goes in: the same figures make the same file."""
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130, metadata={"Software": None})
    pyplot().close(figure)
