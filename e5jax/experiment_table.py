"""What an experiment came to: means over seeds, differences with intervals, the paper's beside them; a picture.

Scores are in percent, as in the paper. A difference is taken seed by seed to the row that a row is compared with, so
what two runs of one seed share does not count; its interval is Student's over the seeds, at 95 %.

Shapes: N seeds.
"""

import collections
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from e5jax import files, pictures


AVERAGE = "average"
Scores = Mapping[str, Mapping[int, Mapping[str, float]]]
"""{row: {seed: {task: score from 0 to 1}}}"""


def write(output: Path, table, scores: Scores) -> dict:
    """table.json, table.md and table.png of what was measured so far -> what table.json says."""
    told = summary(table, scores)
    files.write_json(output / "table.json", told)
    files.write_text(output / "table.md", markdown(told))
    if any(row["seeds"] for row in told["rows"]):
        draw(told, output / "table.png")
    return told


def summary(table, scores: Scores) -> dict:
    """The table as JSON values."""
    by_row = {name: _columns(table, of_seeds) for name, of_seeds in scores.items()}
    rows = []
    for row in table.rows:
        seeds = by_row.get(row.name, {})
        against = next((other for other in table.rows if other.name == row.against), None)
        theirs = by_row.get(row.against, {})
        if against is not None and against.model is not None and theirs:  # it is the same for every seed
            theirs = dict.fromkeys(seeds, next(iter(theirs.values())))
        published = {} if against is None else against.paper
        rows.append(
            {
                "row": row.name,
                "seeds": sorted(seeds),
                "columns": {name: _spread([of[name] for of in seeds.values()]) for name in _names(table)},
                "against": row.against,
                "differences": {name: _difference(seeds, theirs, name) for name in _names(table)},
                "paper": dict(row.paper),
                "paper_differences": {
                    name: row.paper[name] - published[name] for name in row.paper if name in published
                },
                "unanswered": row.unanswered,
            }
        )
        rows[-1]["verdict"] = verdict(rows[-1])
    return {"title": table.title, "about": table.about, "columns": dict(table.columns), "rows": rows}


def _names(table) -> list[str]:
    return [*table.columns, *[AVERAGE] * (table.average is not None)]


def _columns(table, of_seeds) -> dict[int, dict[str, float]]:
    """{seed: {column: percent}}, of the seeds that have every task."""
    found = {}
    tasks = [task for tasks in table.columns.values() for task in tasks]
    for seed, scores in of_seeds.items():
        if all(task in scores for task in tasks):
            mean = lambda tasks, scores=scores: 100 * float(np.mean([scores[task] for task in tasks]))
            found[seed] = {name: mean(tasks) for name, tasks in table.columns.items()}
            found[seed][AVERAGE] = mean(tasks) if table.average == "tasks" else float(np.mean([*found[seed].values()]))
    return found


def _spread(values: Sequence[float]) -> dict | None:
    if not values:
        return None
    return {"mean": float(np.mean(values)), "low": min(values), "high": max(values)}


def _difference(seeds: Mapping, theirs: Mapping, name: str) -> dict | None:
    """Mean over the seeds that both have, and half the width of its interval; None for that of a single seed."""
    both = sorted(seeds.keys() & theirs.keys())
    if not both:
        return None
    return interval([seeds[seed][name] - theirs[seed][name] for seed in both])


def interval(differences_N: Sequence[float]) -> dict:
    """Mean and half the width of Student's 95 % interval, None for a single one."""
    from scipy.stats import t

    n, mean = len(differences_N), float(np.mean(differences_N))
    if n == 1:
        return {"mean": mean, "half": None}
    return {"mean": mean, "half": float(t.ppf(0.975, n - 1) * np.std(differences_N, ddof=1) / np.sqrt(n))}


def verdict(row: Mapping) -> str:
    """Whether what the paper found shows here."""
    if row["unanswered"]:
        return "not answerable at this scale"
    name = AVERAGE if AVERAGE in row["differences"] else next(iter(row["differences"]), None)
    here, there = row["differences"].get(name), row["paper_differences"].get(AVERAGE)
    if here is None or there is None:
        return ""
    if here["half"] is None:
        return "a single seed"
    if not told_apart(here):
        return "not told apart"
    return "shows" if here["mean"] * there > 0 else "the other way round"


def markdown(told: Mapping) -> str:
    """The table for people."""
    names = list(told["rows"][0]["columns"])
    with_paper = any(row["paper"] for row in told["rows"])
    with_differences = any(row["against"] for row in told["rows"])
    heads = ["row", "seeds", *names, *(["paper", "paper's difference", "here"] if with_paper else [])]
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    for row in told["rows"]:
        cells = [row["row"], str(len(row["seeds"])) if row["seeds"] else "–"]
        cells += [_cell(row["columns"][name], row["differences"][name]) for name in names]
        if with_paper:
            average, difference = row["paper"].get(AVERAGE), row["paper_differences"].get(AVERAGE)
            cells += ["–" if average is None else f"{average:.1f}", "–" if difference is None else f"{difference:+.1f}"]
            cells.append(row["verdict"] or "–")
        lines.append(cells)
    table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    reasons = [f"- {row['row']}: {row['unanswered']}" for row in told["rows"] if row["unanswered"]]
    of = "; ".join(f"{name}: {', '.join(tasks)}" for name, tasks in told["columns"].items())
    notes = "Percent; mean over seeds, and from the lowest to the highest of them"
    if with_differences:
        notes += f", or the difference to {_references(told)} with its 95 % interval over seeds"
        notes += ", bold where that leaves out 0"
    notes += f". {of}."
    parts = [f"## {told['title']}", told["about"], table, notes]
    parts += ["Not answerable at this scale:\n\n" + "\n".join(reasons)] if reasons else []
    return "\n\n".join(parts) + "\n"


def _references(told: Mapping) -> str:
    """What rows are compared with: most of them, then those that have another reference."""
    against = {row["row"]: row["against"] for row in told["rows"] if row["against"]}
    usual = collections.Counter(against.values()).most_common(1)[0][0]
    others = [f"{row}: to {reference}" for row, reference in against.items() if reference != usual]
    return f"“{usual}”" + f" ({'; '.join(others)})" * bool(others)


def _cell(spread: Mapping | None, difference: Mapping | None) -> str:
    if spread is None:
        return "–"
    if difference is not None:
        return f"{spread['mean']:.1f}, {_signed(difference)}"
    if spread["low"] == spread["high"]:
        return f"{spread['mean']:.1f}"
    return f"{spread['mean']:.1f} ({spread['low']:.1f} … {spread['high']:.1f})"


def _signed(difference: Mapping) -> str:
    if difference["half"] is None:
        return f"{difference['mean']:+.1f}"
    text = f"{difference['mean']:+.1f} ± {difference['half']:.1f}"
    return f"**{text}**" if told_apart(difference) else text


def told_apart(difference: Mapping) -> bool:
    """Whether the interval leaves out 0."""
    return difference["half"] is not None and abs(difference["mean"]) > difference["half"]


def draw(told: Mapping, path: Path) -> None:
    """Differences with their intervals and the paper's; of passkeys, accuracy over length."""
    names = list(told["columns"])
    if all(name.isdigit() for name in names):
        measured = {
            row["row"]: {int(name): row["columns"][name]["mean"] / 100 for name in names}
            for row in told["rows"]
            if row["seeds"]
        }
        papers = {row["row"]: row["paper"] for row in told["rows"] if row["paper"]}
        published = {
            f"{name}": {int(length): value for length, value in line.items() if length.isdigit()}
            for name, line in papers.items()
        }
        pictures.draw_lengths(measured, published, path)
        return
    _draw_rows(told, path)


def _draw_rows(told: Mapping, path: Path) -> None:
    """A panel a column."""
    plt = pictures.pyplot()
    measured = [row for row in told["rows"] if row["seeds"]]
    rows = [row for row in measured if any(row["differences"].values())] or measured
    names = list(rows[0]["columns"])
    size = (3.0 + 2.0 * len(names), 1.8 + 0.35 * len(rows))
    figure, axes = plt.subplots(1, len(names), figsize=size, layout="constrained", sharey=True, squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        for y, row in enumerate(rows):
            _draw_cell(axis, y, row, name)
        if any(row["differences"][name] for row in rows):
            axis.axvline(0, color="black", linewidth=1)
        axis.set_xlabel(name, fontsize=8)
        axis.tick_params(labelsize=8)
        axis.tick_params(axis="y", length=0)
        axis.grid(axis="x", alpha=0.3)
    several = len({row["against"] for row in rows if row["against"]}) > 1
    labels = [row["row"] + several * f"\nagainst {row['against']}" for row in rows]
    axes[0][0].set_yticks(range(len(rows)), labels)
    axes[0][0].set_ylim(len(rows) - 0.4, -0.6)
    compared = any(any(row["differences"].values()) for row in rows)
    what = "difference in points, 95 % interval over seeds" if compared else "points, lowest to highest seed"
    figure.suptitle(f"{told['title']}: {what}", fontsize=10)
    labels = {
        label: handle for axis in axes[0] for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(labels.values(), labels, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    pictures.save(figure, list(axes[0]), path)


def _draw_cell(axis, y: int, row: Mapping, name: str) -> None:
    here, spread = row["differences"][name], row["columns"][name]
    published = row["paper_differences" if here else "paper"].get(name)
    if here:
        middle, half = here["mean"], here["half"] or 0.0
        low, high = middle - half, middle + half
    elif spread:
        middle, low, high = spread["mean"], spread["low"], spread["high"]
    else:
        return
    axis.hlines(y, low, high, color=pictures.COLORS[0], linewidth=1.8)
    axis.plot(middle, y, "o", color=pictures.COLORS[0], markersize=5.5, label="here", zorder=3)
    if published is not None:
        axis.plot(published, y, "D", color="#8C8C8C", markersize=4.5, markerfacecolor="white", label="paper", zorder=2)
