"""A folder of mined negatives, what stands in it, and what it came to.

D/job.json             what was asked for; a folder of another job is refused
D/blocks/0-8192.jsonl  rows of those records, then .json with what was counted: a block is whole or not there
D/negatives.jsonl      all rows, once every block is there
D/mined.png            scores of positives and negatives
D/mined.json           counts and quantiles, written last
"""

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from e5jax.errors import UserError
from e5jax.files import remove_tree, whole, write_json, write_text
from e5jax.mining.negatives import FATES, LIMITS
from e5jax.pictures import COLORS, pyplot, save


QUANTILES = (5, 25, 50, 75, 95)
BINS = 60


def block_is_done(directory: Path, block: range) -> bool:
    """Whether the rows of these records are there."""
    return _file(directory, block, ".json").exists()


def write_block(directory: Path, block: range, rows: Sequence[dict], counts: Mapping[str, int]) -> None:
    """Rows, then what was counted, each whole or not at all."""
    (directory / "blocks").mkdir(exist_ok=True)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_text(_file(directory, block, ".jsonl"), "".join(lines))
    write_json(_file(directory, block, ".json"), dict(sorted(counts.items())))


def join(directory: Path, blocks: Sequence[range]) -> Counter:
    """All blocks end to end in negatives.jsonl -> the sum of what was counted."""
    counts = Counter()
    with whole(directory / "negatives.jsonl") as joined:
        for block in blocks:
            with _file(directory, block, ".jsonl").open("rb") as rows:
                shutil.copyfileobj(rows, joined)
            counts.update(json.loads(_file(directory, block, ".json").read_text(encoding="utf-8")))
    return counts


def finish(directory: Path, job: Mapping[str, Any], facts: Mapping[str, int], counts: Counter, unit: str) -> None:
    """Statistics and picture of a joined folder."""
    scores = _scores(directory / "negatives.jsonl")
    records = {name: counts[name] for name in ("read", "written", "full", "short", "none", "left out")}
    fates = {fate: counts[fate] for fate in FATES if fate != "absent"}
    thrown_out = {name: number for name, number in fates.items() if name not in ("candidate", "behind the ranks")}
    in_ranks = sum(fates[name] for name in ("candidate", *LIMITS))
    summary = {
        "job": dict(job),
        "records": {**facts, **records},
        "candidates": {
            "looked at": sum(thrown_out.values()) + fates["candidate"],
            "thrown out": thrown_out,
            "left": fates["candidate"],
            "chosen": counts["chosen"],
            "above the positive": counts["above"],
            "share above the positive": round(counts["above"] / in_ranks, 4) if in_ranks else None,
        },
        "own negatives": {"kept": counts["own kept"], "dropped": counts["own dropped"]},
        "quantiles": {name: _quantiles(values) for name, values in scores.items()},
    }
    draw(scores, unit, directory / "mined.png")
    write_json(directory / "mined.json", summary)


def read(directory: Path) -> dict:
    """mined.json of a job that has ended, whose blocks nobody needs any more: they go. UserError where it is none."""
    if (directory / "blocks").exists():
        remove_tree(directory / "blocks")
    try:
        return json.loads((directory / "mined.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{directory / 'mined.json'} cannot be used: {error}") from error


def table(summary: Mapping[str, Any]) -> str:
    """What a person wants to know first."""
    records, candidates, quantiles = (summary[name] for name in ("records", "candidates", "quantiles"))
    share = lambda number, of: f"{number:>12,}  {number / of:6.1%}" if of else f"{number:>12,}"
    lines = [f"records{records['read']:>31,}"]
    told = {"full": "with all negatives", "short": "with fewer", "none": "with none", "left out": "left out"}
    lines += [f"  {words:24}{share(records[name], records['read'])}" for name, words in told.items()]
    lines.append(f"candidates looked at{candidates['looked at']:>18,}")
    rows = {**candidates["thrown out"], "left to choose from": candidates["left"], "chosen": candidates["chosen"]}
    lines += [f"  {name:24}{share(number, candidates['looked at'])}" for name, number in rows.items() if number]
    if candidates["share above the positive"] is not None:
        lines.append(f"in the ranks and above their positive: {candidates['share above the positive']:.1%}")
    lines.append(f"{'':26}" + "".join(f"{f'{percent} %':>9}" for percent in QUANTILES))
    lines += [
        f"  {name:24}" + "".join(f"{at:9.3f}" for at in found.values()) for name, found in quantiles.items() if found
    ]
    return "\n".join(lines)


def draw(scores: Mapping[str, np.ndarray], unit: str, path: Path) -> None:
    """Histograms of the scores of positives and of the negatives that were chosen."""
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(7.5, 3.6), layout="constrained")
    shown = {"positives": (scores["positive score"], COLORS[2]), "negatives": (scores["negative score"], COLORS[5])}
    together = np.concatenate([values for values, _ in shown.values()])
    edges = np.linspace(together.min(), together.max() + 1e-9, BINS) if len(together) else np.linspace(0, 1, BINS)
    for name, (values, color) in shown.items():
        if len(values):
            shares = np.full(len(values), 100 / len(values))
            label = f"{len(values):,} {name}"
            axis.hist(values, bins=edges, weights=shares, color=color, alpha=0.55, label=label)
            axis.axvline(np.median(values), color=color, linewidth=1.6, linestyle="--")
    axis.set_xlabel(f"{unit} with the query (dashed: medians)", fontsize=9)
    axis.set_ylabel("share of the texts, %", fontsize=9)
    axis.set_title("Positives and mined negatives", fontsize=11)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3)
    axis.set_axisbelow(True)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=8, frameon=False)
    save(figure, [axis], path)


def _file(directory: Path, block: range, suffix: str) -> Path:
    return directory / "blocks" / f"{block.start}-{block.stop}{suffix}"


def _scores(path: Path) -> dict[str, np.ndarray]:
    """{what: its values}, over all rows."""
    positive, rank, negative, ratio = [], [], [], []
    with path.open("rb") as file:
        for line in file:
            row = json.loads(line)
            mined = [score for score in row["negative_scores"] if score is not None]
            positive.append(row["positive_score"])
            rank.append(row["positive_rank"])
            negative += mined
            ratio += [score / positive[-1] for score in mined if positive[-1] > 0]
    named = {
        "positive score": positive,
        "negative score": negative,
        "negative / positive": ratio,
        "positive's rank": rank,
    }
    return {name: np.array(values, np.float64) for name, values in named.items()}


def _quantiles(values: np.ndarray) -> dict[str, float] | None:
    if not len(values):
        return None
    return {str(p): round(float(v), 6) for p, v in zip(QUANTILES, np.percentile(values, QUANTILES), strict=True)}
