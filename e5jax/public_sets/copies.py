"""Public copies of training sets: what their files are called, and how each is read.

`**/` in a pattern is any folder or none: a clone of a repository of the hub may lie there as it is.
"""

import dataclasses
from pathlib import Path

from e5jax.public_sets import formats, judged, shapes
from e5jax.public_sets.formats import Reader, objects, of_rows
from e5jax.public_sets.judged import Columns, of_judgements


@dataclasses.dataclass(frozen=True, kw_only=True)
class Copy:
    """A public copy of a set: what its files are called, and how they are read."""

    source: str
    """Where it is to be had."""
    files: dict[str, tuple[str, ...]]
    """By role, patterns below the input folder; of several patterns the first with files. Any file may be gzip's."""
    read: Reader
    may: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    """Likewise, of what need not be there."""
    sampled: bool = False
    """Whether it has the paper's share of the set, not all of it."""


def there(copy: Copy, folder: Path) -> dict[str, list[Path]] | None:
    """The files of a copy in a folder by their role; None where it is not whole."""
    files = {role: _first(folder, patterns) for role, patterns in copy.files.items()}
    if not all(files.values()):
        return None
    may = {role: _first(folder, patterns) for role, patterns in copy.may.items()}
    return files | {role: found for role, found in may.items() if found}


def _first(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    return next(filter(None, (_files(folder, pattern) for pattern in patterns)), [])


def _files(folder: Path, pattern: str) -> list[Path]:
    """Packed and unpacked, each once, and none of a tool's hidden folders."""
    found = [*folder.glob(pattern), *folder.glob(f"{pattern}.gz")]
    seen = {path.as_posix() for path in found}
    return sorted(
        path
        for path in found
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and not (path.suffix == ".gz" and path.as_posix().removesuffix(".gz") in seen)
    )


def one(name: str, pattern: str, source: str, read: Reader) -> Copy:
    """Files of one kind in the folder of a set."""
    return Copy(source=source, files={"rows": (f"{name}/**/{pattern}",)}, read=read)


def tevatron(name: str, source: str) -> Copy:
    """Training files as Tevatron has them, or as the hub makes Parquet of them."""
    patterns = ("train*.jsonl", "*train*.parquet", "train/*.parquet")
    files = {"rows": tuple(f"{name}/**/{pattern}" for pattern in patterns)}
    return Copy(source=source, files=files, read=of_rows(objects, shapes.tevatron))


def dpr(name: str, file: str) -> Copy:
    """A file of DPR's retriever data."""
    source = "facebookresearch/DPR, data/download_data.py --resource data.retriever"
    return one(name, file, source, of_rows(objects, shapes.dpr))


def beir(name: str) -> Copy:
    """A folder of BEIR, its training part."""
    files = {"queries": "queries.jsonl", "documents": "corpus.jsonl", "judgements": "qrels/train.tsv"}
    return Copy(
        source=f"https://github.com/beir-cellar/beir, {name}.zip unpacked",
        files={role: (f"{name}/**/{file}",) for role, file in files.items()},
        read=of_judgements(judged.jsonl("_id"), judged.jsonl("_id"), {}, ""),
    )


def collections(bge: str, echo: str) -> tuple[Copy, ...]:
    """The set's part in the two collections that have all sets."""
    return (
        Copy(
            source="hub: cfli/bge-e5data, as the folder bge-e5data",
            files={"rows": (f"bge-e5data/**/{bge}-*.parquet", f"bge-e5data/**/{bge}.jsonl")},
            read=of_rows(objects, shapes.bge),
            sampled=True,  # it has 90,467 of the 200,376 training queries of T2Ranking that have a passage
        ),
        Copy(
            source="https://github.com/jakespringer/echo-embeddings, its training data as the folder echo-data",
            files={"rows": (f"echo-data/**/{echo}.jsonl",)},
            read=of_rows(objects, shapes.echo),
            sampled=True,  # 1.5 million triples in all; LLM2Vec (arXiv 2404.05961) trains on them without another share
        ),
    )


ELI5 = Copy(
    source="hub: sentence-transformers/eli5 (question, answer); eli5's threads (title, answers) as train.json(l)",
    files={"rows": ("eli5/**/train*.parquet", "eli5/**/train*.jsonl", "eli5/**/train*.json")},
    read=of_rows(objects, shapes.eli5),
)
MIRACL = Copy(
    source="hub: miracl/miracl and miracl/miracl-corpus, both below the folder miracl",
    files={
        "queries": ("miracl/**/topics.miracl-v1.0-*-train.tsv",),
        "judgements": ("miracl/**/qrels.miracl-v1.0-*-train.tsv",),
        "documents": ("miracl/**/miracl-corpus-v1.0-*/docs-*.jsonl",),
    },
    may={"judged": ("miracl/**/qrels.miracl-v1.0-*-train.tsv",)},
    read=of_judgements(
        judged.tsv(None, 1),
        judged.jsonl("docid"),
        {"judged": Columns(query=0, document=2, grade=3)},
        r"miracl-(?:corpus-)?v1\.0-([a-z]+)",
    ),
)
MRTYDI = one(
    "mrtydi",
    "mrtydi-v1.1-combined/train.jsonl",
    "hub: castorini/mr-tydi",
    of_rows(objects, shapes.tevatron),
)
MSMARCO_PASSAGE = Copy(
    source="https://microsoft.github.io/msmarco/Datasets.html, passage ranking",
    files={
        "queries": ("msmarco_passage/**/queries.train.tsv",),
        "judgements": ("msmarco_passage/**/qrels.train.tsv",),
        "documents": ("msmarco_passage/**/collection.tsv",),
    },
    may={"triples": ("msmarco_passage/**/qidpidtriples.train.full*.tsv",)},
    read=of_judgements(
        judged.tsv(None, 1), judged.tsv(None, 1), {"triples": Columns(query=0, document=2, grade=None)}, ""
    ),
)
MSMARCO_DOCUMENT = Copy(
    source="https://microsoft.github.io/msmarco/Datasets.html, document ranking",
    files={
        "queries": ("msmarco_document/**/msmarco-doctrain-queries.tsv",),
        "judgements": ("msmarco_document/**/msmarco-doctrain-qrels.tsv",),
        "documents": ("msmarco_document/**/msmarco-docs.tsv",),
    },
    may={"top100": ("msmarco_document/**/msmarco-doctrain-top100",)},
    read=of_judgements(judged.tsv(None, 1), judged.tsv(2, 3), {"top100": Columns(query=0, document=2, grade=None)}, ""),
)
T2RANKING = Copy(
    source="hub: THUIR/T2Ranking",
    files={
        "queries": ("t2ranking/**/queries.train.tsv",),
        "judgements": ("t2ranking/**/qrels.retrieval.train.tsv",),
        "documents": ("t2ranking/**/collection.tsv",),
    },
    may={
        "judged": ("t2ranking/**/qrels.train.tsv",),
        "mined": ("t2ranking/**/train.mined.tsv",),
        "bm25": ("t2ranking/**/train.bm25.tsv",),
    },
    read=of_judgements(
        judged.tsv(None, 1),
        judged.tsv(None, 1),
        {
            "mined": Columns(query=0, document=1, grade=None),
            "bm25": Columns(query=0, document=1, grade=None),
            "judged": Columns(query=0, document=2, grade=3),
        },
        "",
    ),
)
DUREADER = (
    one(
        "dureader",
        "dual.train.tsv",
        "https://github.com/PaddlePaddle/RocketQA, research/DuReader-Retrieval-Baseline (with hard negatives)",
        of_rows(formats.rocketqa_rows, shapes.as_it_is),
    ),
    tevatron("dureader", "hub: zyznull/dureader-retrieval-ranking"),
    one(
        "dureader",
        "train.json",
        "https://github.com/baidu/DuReader, DuReader-Retrieval, the original dataset",
        of_rows(objects, shapes.dureader),
    ),
)
NLI = one(
    "nli", "nli_for_simcse.csv", "hub: princeton-nlp/datasets-for-simcse", of_rows(formats.table(","), shapes.simcse)
)
QUORA = one(
    "quora",
    "quora_duplicate_questions.tsv",
    "https://quoradata.quora.com/First-Quora-Dataset-Release-Question-Pairs",
    of_rows(formats.table("\t"), shapes.quora),
)
