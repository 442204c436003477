"""What an evaluation measured: one record a task, one folder a model, one table and picture for all models.

D/results.json     {"model", "identity", "results": [{"task", "metric", "value", "n", ...}], "versions"}
D/examples/        TASK.npz: the score of every example, for paired comparisons
D/results.md       the table; D/results.png the picture, where there is more than one model

Scores are in mteb's unit, 0 to 1 and not percent, published ones too. Every task is written down when it is done, so an
evaluation that was stopped goes on behind it.
"""

import dataclasses
import json
import math
import platform
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from urllib.parse import quote

import numpy as np

import e5jax
from e5jax import files, pictures
from e5jax.errors import FailedError, UserError


PACKAGES = ("jax", "flax", "numpy", "mteb", "torch", "sentence-transformers", "bm25s")


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """One task's main score, with what it was measured on."""

    task: str
    metric: str
    """ndcg_at_10, cosine_spearman, accuracy, f1, ..."""
    value: float
    n: int
    """Queries, pairs or test texts."""
    subsets: dict[str, float]
    """The score in each language; {} where there is one."""
    prompt: dict[str, str]
    """What stood in front of the texts: {"query": ..., "passage": ...}."""
    data: str
    """What it was measured on: a fingerprint of local files; revision, languages and splits of mteb's data."""
    examples: dict[str, np.ndarray]
    """{"score": [n]} whose mean is `value`, or {"predicted": [n], "gold": [n]} whose Spearman correlation is; or {}.
    Their order is the task's own."""


@dataclass(frozen=True, kw_only=True)
class Results:
    """Everything measured of one model."""

    model: str
    identity: dict
    """What the scores depend on beside the model's name: its digest, max_length, ...; JSON values."""
    results: tuple[TaskResult, ...]
    paper: dict[str, float]
    """Published scores of TASK or TASK/SUBSET."""
    versions: dict[str, str]

    def find(self, task: str) -> TaskResult | None:
        """The result of a task; None where it was not measured."""
        return next((result for result in self.results if result.task == task), None)


def open_folder(folder: Path, model: str, identity: dict, paper: Mapping[str, float]) -> Results:
    """What `folder` has of this model so far; a new folder is begun. `paper` in percent, as published.

    Raises UserError where the folder holds something else: results of another model or settings, other files.
    """
    identity = json.loads(json.dumps(identity))
    paper = {name: round(percent / 100, 6) for name, percent in paper.items()}
    if (folder / "results.json").is_file():
        stored = read_folder(folder)
        theirs = {"model": stored.model, **stored.identity}
        mine = {"model": model, **identity}
        differ = [key for key in {**mine, **theirs} if mine.get(key) != theirs.get(key)]
        if differ:
            show = lambda settings, key: reprlib.repr(settings.get(key))
            said = "; ".join(f"{key} is {show(theirs, key)} there and {show(mine, key)} here" for key in differ)
            raise UserError(f"{folder} holds another evaluation: {said}. Choose another --output, or remove this one")
        run = dataclasses.replace(stored, paper=stored.paper | paper)
    else:
        check_folder(folder, "results.json")
        run = Results(model=model, identity=identity, results=(), paper=paper, versions={})
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(folder / "results.json", _to_json(run))
    return run


def check_folder(folder: Path, own: str) -> None:
    """UserError where a folder has files and none of them is `own` (a pattern): they are somebody else's."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: choose another --output")
    if folder.is_dir() and any(folder.iterdir()) and not any(folder.glob(own)):
        raise UserError(f"{folder} holds something else than results: choose another --output")


def add(folder: Path, run: Results, result: TaskResult) -> Results:
    """`run` with one more result, on disk when this returns. Raises FailedError where the score is no number."""
    if not math.isfinite(result.value):
        raise FailedError(f"{result.task}: {result.metric} is {result.value}: the model's vectors are of no use there")
    if result.examples:
        _write_examples(folder, result)
    others = tuple(other for other in run.results if other.task != result.task)
    run = dataclasses.replace(run, results=(*others, result), versions=versions())
    files.write_json(folder / "results.json", _to_json(run))
    return run


def read_folder(folder: Path) -> Results:
    """The results of one model, with their examples. Raises UserError where there are none."""
    path = folder / "results.json"
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        rows = stored["results"]
        return Results(
            model=stored["model"],
            identity=stored["identity"],
            results=tuple(_from_json(row, _read_examples(folder, row["task"])) for row in rows),
            paper={name: score for row in rows for name, score in _published(row).items()},
            versions=stored["versions"],
        )
    except FileNotFoundError:
        inside = sorted(str(child.parent) for child in folder.glob("*/results.json"))
        hint = f"; it has {', '.join(inside)}: name one of them" if inside else ""
        raise UserError(f"{folder}: no results.json{hint}") from None
    except Exception as error:  # of many kinds: JSON of another shape, examples that are no zip
        raise UserError(f"{path}: not the results of an evaluation: {type(error).__name__}: {error}") from error


def versions() -> dict[str, str]:
    """The versions that a score may depend on, of what is installed."""
    found = {"e5jax": e5jax.__version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def write_report(folder: Path, runs: Sequence[Results], types: Mapping[str, str]) -> None:
    """results.md and, for more than one model, results.png. `types`: task -> its type, for the means."""
    folder.mkdir(parents=True, exist_ok=True)
    files.write_text(folder / "results.md", report(runs, types))
    if len(runs) > 1 and any(run.results for run in runs):
        scores = {run.model: {result.task: result.value for result in run.results} for run in runs}
        metrics = {result.task: result.metric for run in runs for result in run.results}
        pictures.draw_scores(scores, metrics, _all_published(runs), folder / "results.png")


def report(runs: Sequence[Results], types: Mapping[str, str]) -> str:
    """Markdown: a row a task, a column a model, means, published scores; then a table for each task with languages.

    Means are over the tasks of one type (of one metric, where `types` lacks the task), and there only for models that
    have them all.
    """
    tasks = list({result.task: None for run in runs for result in run.results})
    found = {task: [run.find(task) for run in runs] for task in tasks}
    first = {task: next(filter(None, results)) for task, results in found.items()}
    published = _all_published(runs)
    rows = [
        ([task, first[task].metric, f"{first[task].n:,}"], [r and r.value for r in found[task]], published.get(task))
        for task in tasks
    ]
    values = {task: row[1:] for task, row in zip(tasks, rows, strict=True)}
    groups: dict[str, list[str]] = {}
    for task in tasks:
        groups.setdefault(types.get(task, first[task].metric), []).append(task)
    means = [(kind, group) for kind, group in groups.items() if len(group) > 1 and len(groups) > 1]
    for kind, group in [*means, *([("tasks", tasks)] if len(tasks) > 1 else [])]:
        rows.append(_mean_row(f"mean of {len(group)} {kind}", ["", ""], [values[task] for task in group]))
    parts = ["# Results", _table(["task", "metric", "n"], rows, runs)]
    for task in tasks:
        if first[task].subsets:
            parts += [f"## {task}", _subsets(task, found[task], published, runs)]
    parts += ["\n".join(_describe(run) for run in runs)]
    return "\n\n".join(parts) + "\n"


def _subsets(task, results, published, runs) -> str:
    names = list({name: None for result in results if result for name in result.subsets})
    rows = [([name], [r and r.subsets.get(name) for r in results], published.get(f"{task}/{name}")) for name in names]
    in_paper = [row[1:] for row in rows if row[2] is not None]
    if 1 < len(in_paper) < len(rows):  # the paper's average is over these
        rows.append(_mean_row(f"mean of the {len(in_paper)} in the paper", [], in_paper))
    return _table(["subset"], rows, runs)


def _mean_row(name: str, rest: list[str], rows: Iterable[tuple[list, float | None]]):
    values, published = zip(*rows, strict=True)
    mean = lambda numbers: None if None in numbers else float(np.mean(numbers))
    return [name, *rest], [mean(column) for column in zip(*values, strict=True)], mean(published)


def _table(heads: list[str], rows, runs: Sequence[Results]) -> str:
    """Words to the left, numbers to the right; the difference to the paper only beside a single model."""
    models = pictures.short_names([run.model for run in runs])
    with_paper = any(published is not None for _, _, published in rows)
    with_difference = with_paper and len(runs) == 1
    heads = [*heads, *models, *["paper"] * with_paper, *["difference"] * with_difference]
    words = sum(head in ("task", "metric", "subset") for head in heads)
    lines = [heads, ["---"] * words + ["---:"] * (len(heads) - words)]
    for names, values, published in rows:
        cells = [*names, *(_number(value, ".4f") for value in values)]
        if with_paper:
            cells.append(_number(published, ".3f"))
        if with_difference:
            both = None not in (values[0], published)
            cells.append(_number(values[0] - published if both else None, "+.4f"))
        lines.append(cells)
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _describe(run: Results) -> str:
    settings = ", ".join(f"{key} {value}" for key, value in run.identity.items() if value is not None)
    software = ", ".join(f"{name} {version}" for name, version in run.versions.items())
    return f"- `{run.model}`: {settings or 'no settings'} ({software})"


def _all_published(runs: Sequence[Results]) -> dict[str, float]:
    return {name: score for run in runs for name, score in run.paper.items()}


def _to_json(run: Results) -> dict:
    rows = []
    for result in run.results:
        paper = {"paper": run.paper.get(result.task)}
        paper["paper_subsets"] = {
            name: run.paper[f"{result.task}/{name}"] for name in result.subsets if f"{result.task}/{name}" in run.paper
        }
        row = {field.name: getattr(result, field.name) for field in dataclasses.fields(result)} | paper
        del row["examples"]
        rows.append({key: value for key, value in row.items() if value is not None and value != {}})
    return {"model": run.model, "identity": run.identity, "results": rows, "versions": run.versions}


def _from_json(row: dict, examples: dict[str, np.ndarray]) -> TaskResult:
    fields = {key: row[key] for key in ("task", "metric", "value", "n")}
    more = {"subsets": row.get("subsets", {}), "prompt": row.get("prompt", {}), "data": row.get("data", "")}
    return TaskResult(**fields, **more, examples=examples)


def _published(row: dict) -> dict[str, float]:
    own = {row["task"]: row["paper"]} if "paper" in row else {}
    return own | {f"{row['task']}/{name}": score for name, score in row.get("paper_subsets", {}).items()}


def _examples_path(folder: Path, task: str) -> Path:
    return folder / "examples" / f"{quote(task, safe=' ')}.npz"  # no two tasks share a name, none leaves the folder


def _write_examples(folder: Path, result: TaskResult) -> None:
    path = _examples_path(folder, result.task)
    path.parent.mkdir(exist_ok=True)
    with files.whole(path) as file:
        np.savez_compressed(file, **result.examples)


def _read_examples(folder: Path, task: str) -> dict[str, np.ndarray]:
    path = _examples_path(folder, task)
    if not path.is_file():
        return {}
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}
