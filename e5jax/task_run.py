"""One task run by mteb: its main score, and what every example adds to it, for comparisons.

mteb keeps means only. What single queries, texts and pairs scored is taken from the calls it makes on the way there.
"""

import contextlib
import dataclasses
import logging
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from e5jax.errors import FailedError, UserError
from e5jax.results import TaskResult
from e5jax.tasks import parts, require_mteb
from e5jax.tensors import digest_files


BATCH = 64  # texts a batch of a sentence-transformers model
ROUNDING = 1e-5  # mteb keeps five decimals of a mean over queries
# mteb's name of a metric of a ranking, and trec_eval's.
TREC = (
    ("ndcg_at_", "ndcg_cut_"),
    ("map_at_", "map_cut_"),
    ("recall_at_", "recall_"),
    ("precision_at_", "P_"),
    ("hit_rate_at_", "success_"),
)


def run_task(model, task) -> TaskResult:
    """Runs a model of `open_mteb_model` on a task of `tasks.resolve`.

    The score is the mean over languages (and splits, and parts of an aggregate), as mteb's is. `examples["score"]` of a
    task with languages is weighted so that its mean is that score. Raises UserError for a model that cannot do such a
    task, and where its local files are at fault; FailedError where the data do not come.
    """
    runs = [_run(model, part) for part in parts(task)]
    if not task.is_aggregate:
        return runs[0]
    return TaskResult(
        task=task.metadata.name,
        metric=task.metadata.main_score,
        value=float(np.mean([run.value for run in runs])),
        n=sum(run.n for run in runs),
        subsets={run.task: run.value for run in runs},
        prompt=runs[0].prompt,
        data=fingerprint(task),
        examples=_together([run.examples for run in runs]),
    )


def fingerprint(task) -> str:
    """What a task is measured on: scores on other data are other scores."""
    return "; ".join(map(_data_of, parts(task)))


def _data_of(task) -> str:
    files = getattr(task, "files", ())
    if files:
        return f"files {digest_files(sorted(files))[:16]}"
    metadata = task.metadata
    return f"{metadata.dataset['revision']} {' '.join(sorted(task.hf_subsets))} {' '.join(sorted(task.eval_splits))}"


def can_run(model, task) -> bool:
    """Whether the model does such tasks; one that only searches does retrieval and reranking."""
    search = require_mteb().abstasks.AbsTaskRetrieval
    return hasattr(model, "encode") or all(isinstance(part, search) for part in parts(task))


def _run(model, task) -> TaskResult:
    mteb = require_mteb()
    metadata = task.metadata
    if not can_run(model, task):
        raise UserError(f"{metadata.name} is {metadata.type}, and {model.mteb_model_meta.name} can only search")
    fresh = type(task)(seed=task.seed)  # sampling draws from these, and every model is to get the same sample
    task.rng_state, task.np_rng = fresh.rng_state, fresh.np_rng
    _load(task)
    try:
        with _listening(task) as heard, _quiet():
            evaluated = mteb.evaluate(
                model,
                task,
                co2_tracker=False,
                cache=None,
                encode_kwargs={"batch_size": BATCH, "show_progress_bar": sys.stderr.isatty()},
                show_progress_bar=False,
            )
        scores = evaluated.task_results[0].scores
        count = sum(_count(task, split, one["hf_subset"]) for split in scores for one in scores[split])
    finally:
        task.unload_data()
    prefix = lambda split: "" if len(scores) == 1 else f"{split}/"
    by_subset = {prefix(s) + one["hf_subset"]: float(one["main_score"]) for s in scores for one in scores[s]}
    value, examples = float(np.mean([*by_subset.values()])), _together(heard)
    if "score" in examples:
        mean = float(examples["score"].mean())
        # Another number is a score of the task's own making, which no example adds up to.
        value, examples = (mean, examples) if abs(mean - value) <= ROUNDING else (value, {})
    return TaskResult(
        task=metadata.name,
        metric=metadata.main_score,
        value=value,
        n=count,
        subsets=by_subset if len(by_subset) > 1 else {},
        prompt={"query": "", "passage": ""} | model.prompts_used.get(metadata.name, {}),
        data=fingerprint(task),
        examples=examples,
    )


@contextlib.contextmanager
def _quiet():
    """Without remarks on metrics that are not reported, on newer editions of a task, and bars where nobody watches."""
    import datasets

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    logging.getLogger("mteb").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _load(task) -> None:
    try:
        task.load_data()
    except UserError:
        raise
    except Exception as error:  # of many kinds: no network, no access, a changed data set, ...
        name, source = task.metadata.name, task.metadata.dataset["path"]
        raise FailedError(f"{name}: its data, {source}, could not be loaded from the hub: {error}") from error


def _count(task, split: str, subset: str) -> int:
    """Queries, pairs or texts of one language; sets within sets are counted out."""
    data = task.dataset.get(subset, task.dataset)[split]
    if "queries" in data:
        return len(data["queries"])
    column = data[next(iter(task._get_content_columns()))]
    return sum(len(texts) if isinstance(texts, list) else 1 for texts in column)


def _together(parts: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Examples of one part as they are; of several, scores weighted so that each part counts alike."""
    if len(parts) == 1:
        return parts[0]
    if not parts or not all("score" in part for part in parts):
        return {}  # no correlation is the mean of others
    each = sum(len(part["score"]) for part in parts) / len(parts)
    return {"score": np.concatenate([part["score"] * (each / len(part["score"])) for part in parts])}


@contextlib.contextmanager
def _listening(task) -> Iterator[list[dict[str, np.ndarray]]]:
    """While this is open, a list of the examples of each language grows with what mteb computes of the task."""
    heard: list[dict[str, np.ndarray]] = []
    hook = HOOKS.get(task.metadata.type)
    if hook is None:
        yield heard
        return
    method, draws = getattr(task, hook.method), []

    def listen(*args, **rest):
        returned = method(*args, **rest)
        draws.append(hook.examples(task, args, returned))
        if len(draws) == hook.draws(task):
            heard.append({key: np.mean([draw[key] for draw in draws], axis=0) for key in draws[0]})
            draws.clear()
        return returned

    setattr(task, hook.method, listen)  # on the task itself, in front of its class's
    try:
        yield heard
    finally:
        delattr(task, hook.method)


def _ranked(task, args, returned) -> dict[str, np.ndarray]:
    by_query, _, results = args
    metric = task.metadata.main_score
    theirs = next((metric.replace(ours, trec) for ours, trec in TREC if metric.startswith(ours)), None)
    return {"score": np.array([by_query[query][theirs] for query in results if query in by_query])} if theirs else {}


def _similar(task, args, returned) -> dict[str, np.ndarray]:
    predicted, gold = args
    if task.metadata.main_score != "cosine_spearman":
        return {}
    return {"predicted": np.array(predicted["cosine_scores"]), "gold": np.array(gold)}


def _translated(task, args, returned) -> dict[str, np.ndarray]:
    """Each pair's share in F1, weighted by label: hits over the mean of how often its label is right and was chosen."""
    nearest, gold = args
    if task.metadata.main_score != "f1":
        return {}
    chosen, right = [one["corpus_id"] for one in nearest], [gold[i][1] for i in range(len(nearest))]
    times_chosen, times_right = Counter(chosen), Counter(right)
    share = lambda label: 2 * times_right[label] / (times_chosen[label] + times_right[label])
    return {"score": np.array([share(r) if c == r else 0.0 for c, r in zip(chosen, right, strict=True)])}


def _classified(task, args, returned) -> dict[str, np.ndarray]:
    if task.metadata.main_score != "accuracy" or task.is_cross_validation:
        return {}
    (_, tested, *_), (_, predicted) = args, returned
    return {"score": np.array(predicted) == np.array(tested[task.label_column_name])}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hook:
    """A method of mteb's tasks that sees every example."""

    method: str
    examples: Callable[[Any, tuple, Any], dict[str, np.ndarray]]
    """Of the task, the arguments of a call and what it returned; {} where the metric is not a mean over examples."""
    draws: Callable[[Any], int] = lambda task: 1
    """Calls for one language, of which the mean counts."""


RANKED = Hook(method="task_specific_scores", examples=_ranked)
HOOKS = {
    "Retrieval": RANKED,
    "Reranking": RANKED,
    "InstructionRetrieval": RANKED,
    "InstructionReranking": RANKED,
    "STS": Hook(method="_calculate_scores", examples=_similar),
    "BitextMining": Hook(method="_compute_metrics", examples=_translated),
    "Classification": Hook(method="_run_experiment", examples=_classified, draws=lambda task: task.n_experiments),
}
