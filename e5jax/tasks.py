"""The tasks of an evaluation: names on the command line to tasks of mteb, local files among them.

A local task is a real mteb task whose data are read from disk, so protocol and metrics are mteb's own: ranking by
trec_eval's nDCG@10, Spearman's correlation of cosines, weighted F1 of the nearest neighbour, and logistic regression on
8 texts a label in 10 draws.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from e5jax import local_tasks
from e5jax.errors import UserError
from e5jax.local_tasks import Labelled, LocalTask, Pairs, Search, discover
from e5jax.prompts import nearest


PROBE_S = 10  # how long the hub may take to answer at all
LOCAL = "local"  # the revision of data that come from no hub


@dataclasses.dataclass(frozen=True, kw_only=True)
class Form:
    """What mteb calls a form of local task."""

    type: str
    main_score: str
    data: Callable[[Search | Pairs | Labelled], dict]
    """What was read -> `dataset` of the mteb task."""


def resolve(names: Sequence[str], data_dir: Path | None) -> list:
    """Each name's tasks: a local task's, an mteb task's or a benchmark's, in this order; no task twice.

    Multilingual tasks run on all their languages, those of a benchmark on the benchmark's. Raises UserError for a name
    nobody knows, a task that is not about text, and data that are neither here nor within reach.
    """
    mteb = require_mteb()
    local = discover(data_dir) if data_dir else {}
    tasks = {}
    for name in names:
        found = [mteb_task(local[name])] if name in local else _of_mteb(mteb, name)
        if not found:
            raise UserError(f"no task or benchmark {name!r}{_near(mteb, name, data_dir, local)}")
        for task in found:
            other = tasks.setdefault(task.metadata.name, task)
            if (other.hf_subsets, other.eval_splits) != (task.hf_subsets, task.eval_splits):
                raise UserError(
                    f"{task.metadata.name} is asked for twice, with different languages or splits: "
                    "measure it in two calls, with an --output for each"
                )
    tasks = list(tasks.values())
    for task in tasks:
        if list(modalities := task.metadata.modalities) != ["text"]:
            raise UserError(f"{task.metadata.name} is about {', '.join(modalities)}: only text is read here")
    _require_data(tasks)
    return tasks


def require_mteb():
    """The mteb package, with torch beside it for its metrics. Raises UserError where one is missing."""
    try:
        import mteb
        import torch  # noqa: F401
    except ImportError as error:
        raise UserError(f"evaluation needs mteb and torch: pip install 'e5jax[eval]' ({error})") from None
    return mteb


def _of_mteb(mteb, name: str) -> list:
    for find in (lambda: [mteb.get_task(name)], lambda: list(mteb.get_benchmark(name).tasks)):
        try:
            return find()
        except KeyError:
            continue
    return []


def _near(mteb, name: str, data_dir: Path | None, local: Mapping[str, LocalTask]) -> str:
    if data_dir is None:
        own = "; tasks in files need $E5JAX_DATA or --data-dir"
    else:
        own = "" if local else f"; {data_dir} has no tasks"
    theirs = mteb.get_tasks(modalities=["text"], exclusive_modality_filter=True, exclude_superseded=False)
    known = [*local, *(task.metadata.name for task in theirs), *(b.name for b in mteb.get_benchmarks())]
    return (nearest(name, known) or (f"; {data_dir} has {', '.join(local)}" if local else "")) + own


def mteb_task(local: LocalTask):
    """mteb's task over local files; they are read when it is run, and a mistake in them is a UserError then."""
    mteb = require_mteb()
    from mteb.abstasks.task_metadata import TaskMetadata

    form = FORMS[local.form]

    def load_data(self, num_proc=None, **_):
        """Reads the files."""
        if not self.data_loaded:
            self.dataset = form.data(local_tasks.load(local))
            self.data_loaded = True

    metadata = TaskMetadata(
        name=local.name,
        description=f"{form.type} on {', '.join(map(str, local.paths))}",
        dataset={"path": str(local.paths[0].parent), "revision": LOCAL},
        type=form.type,
        category="t2c" if form.type == "Classification" else "t2t",
        eval_langs=[_language(code) for code in local.languages] or ["und-Zyyy"],
        main_score=form.main_score,
    )
    base = getattr(mteb.abstasks, f"AbsTask{form.type}")
    return type("LocalTask", (base,), {"metadata": metadata, "load_data": load_data, "files": local.paths})()


def _language(code: str) -> str:
    """ "de", "deu" -> "deu-Latn", as mteb writes languages; undetermined where it is no language."""
    from mteb.languages import iso_mappings

    return iso_mappings._hf_lang_to_iso_lang_script(code) or "und-Zyyy"


def _search(data: Search) -> dict:
    from datasets import Dataset

    queries = {"id": list(data.queries), "text": list(data.queries.values())}
    titles, texts = zip(*data.corpus.values(), strict=True)
    corpus = {"id": list(data.corpus), "title": titles, "text": texts}
    split = {
        "queries": Dataset.from_dict(queries),
        "corpus": Dataset.from_dict(corpus),
        "relevant_docs": data.relevant,
        "top_ranked": None,
    }
    return {"default": {"test": split}}


def _pairs(data: Pairs) -> dict:
    from datasets import Dataset

    score = {} if data.score is None else {"score": data.score}
    return {"test": Dataset.from_dict({"sentence1": data.first, "sentence2": data.second} | score)}


def _labelled(data: Labelled):
    from datasets import Dataset, DatasetDict

    splits = {"train": data.train, "test": data.test}
    return DatasetDict({name: Dataset.from_dict({"text": t, "label": l}) for name, (t, l) in splits.items()})


FORMS = {
    "beir": Form(type="Retrieval", main_score="ndcg_at_10", data=_search),
    "squad": Form(type="Retrieval", main_score="ndcg_at_10", data=_search),
    "sts": Form(type="STS", main_score="cosine_spearman", data=_pairs),
    "bitext": Form(type="BitextMining", main_score="f1", data=_pairs),
    "classification": Form(type="Classification", main_score="accuracy", data=_labelled),
}


def parts(task) -> list:
    """The tasks that an aggregate (CQADupstackRetrieval) is the mean of; a task itself otherwise."""
    return list(task.metadata.tasks) if task.is_aggregate else [task]


def _require_data(tasks: Iterable) -> None:
    """Raises UserError for the tasks whose data are not in the cache while the hub is out of reach."""
    remote = [part for task in tasks for part in parts(task) if part.metadata.dataset["revision"] != LOCAL]
    if not remote or (problem := _out_of_reach()) is None:
        return
    missing = [part.metadata.name for part in remote if not _cached(part.metadata.dataset["path"])]
    if missing:
        raise UserError(
            f"{', '.join(missing[:5])}{' …' if missing[5:] else ''}: its data come over the network, and {problem}; "
            "run once where the Hugging Face hub can be reached (a copy stays in HF_HOME), or take local tasks"
        )


def _out_of_reach() -> str | None:
    """Why the hub cannot be reached, asking it once; None where it can.

    From then on the libraries are offline: they read what is cached at once instead of asking for minutes.
    """
    import datasets
    import huggingface_hub

    constants = huggingface_hub.constants
    if constants.is_offline_mode():
        return "HF_HUB_OFFLINE is set"
    try:
        huggingface_hub.get_session().head(constants.ENDPOINT, timeout=PROBE_S)
    except Exception as error:  # the client's errors are of no common kind
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
        return f"{constants.ENDPOINT} does not answer ({error})"
    return None


def _cached(path: str) -> bool:
    import datasets
    from huggingface_hub import constants

    names = (
        Path(constants.HF_HUB_CACHE) / f"datasets--{path.replace('/', '--')}",
        Path(datasets.config.HF_DATASETS_CACHE) / path.replace("/", "___"),
    )
    return any(name.is_dir() for name in names)
