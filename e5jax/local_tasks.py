"""Evaluation data in the files people have: which tasks a folder holds, and what is in one.

FOLDER/corpus.jsonl, queries.jsonl, qrels/test.tsv   search in BEIR's form            -> task FOLDER
FOLDER/STEM.json                                     questions in SQuAD v1.1's form    -> FOLDER-STEM
FOLDER/STEM-test.csv                                 pairs: sentence1,sentence2,score  -> FOLDER-STEM
FOLDER/AA-BB.AA, AA-BB.BB                            sentences aligned line by line    -> FOLDER-AA
FOLDER/train.csv, test.csv                           text,label (or category)          -> FOLDER
"""

import csv
import dataclasses
import itertools
import json
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from e5jax.errors import UserError
from e5jax.records import BadRecord, Record, Source, lines, read


SPLITS = ("test", "dev", "train")  # of judgements; the first there is
SQUAD = re.compile(rb'"data"\s*:\s*\[')  # at the head of a file; tokenizers and configs are .json too
PAIR = ("sentence1", "sentence2", "score")
LABEL = ("label", "category")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LocalTask:
    """A task found on disk; nothing is read before `load`."""

    name: str
    form: str
    """beir, squad, sts, bitext or classification."""
    paths: tuple[Path, ...]
    languages: tuple[str, ...]
    """As the file names spell them, where they do: ("de",), ("fra", "eng")."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
    """Queries, documents and which of them are relevant, each by its id."""

    queries: dict[str, str]
    corpus: dict[str, tuple[str, str]]
    """(title, text); the title is "" where there is none."""
    relevant: dict[str, dict[str, int]]
    """query id -> document id -> how relevant it was judged."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pairs:
    """Sentences side by side, and how similar they are (None where they are translations)."""

    first: list[str]
    second: list[str]
    score: list[float] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labelled:
    """(texts, the number of each one's label), to train on and to test."""

    train: tuple[list[str], list[int]]
    test: tuple[list[str], list[int]]


def discover(data_dir: Path) -> dict[str, LocalTask]:
    """The tasks of a folder and of the folders in it, by name; looks at names, and at the head of .json files.

    Raises UserError where there is no such folder or two tasks have one name.
    """
    if not data_dir.is_dir():
        raise UserError(f"{data_dir}: no such folder of tasks")
    inside = sorted(path for path in data_dir.iterdir() if path.is_dir() and not path.name.startswith("."))
    tasks: dict[str, LocalTask] = {}
    for folder in (data_dir, *inside):
        files = sorted(path.name for path in folder.iterdir() if path.is_file())
        for form, stem, names, languages in itertools.chain(*(find(folder, files) for find in FINDERS)):
            name = folder.resolve().name + (f"-{stem}" if stem else "")
            task = LocalTask(name=name, form=form, paths=tuple(folder / n for n in names), languages=languages)
            if other := tasks.get(name):
                raise UserError(f"{task.paths[0]} and {other.paths[0]} would both be task {name}: rename one of them")
            tasks[name] = task
    return tasks


# A finder is given a folder and its files, and yields (form, STEM or "", paths of the task, languages).
Found = Iterator[tuple[str, str, tuple[str, ...], tuple[str, ...]]]


def _find_beir(folder: Path, files: list[str]) -> Found:
    judged = [f"qrels/{split}.tsv" for split in SPLITS if (folder / "qrels" / f"{split}.tsv").is_file()]
    if judged and {"corpus.jsonl", "queries.jsonl"} <= {*files}:
        yield "beir", "", ("corpus.jsonl", "queries.jsonl", judged[0]), ()


def _find_squad(folder: Path, files: list[str]) -> Found:
    for file in files:
        if file.endswith(".json"):
            with (folder / file).open("rb") as opened:
                head = opened.read(4_096)
            if SQUAD.search(head):
                stem = file.removesuffix(".json")
                yield "squad", stem, (file,), (stem,)


def _find_sts(folder: Path, files: list[str]) -> Found:
    for match in filter(None, (re.fullmatch(r"(.+)-test\.csv", file) for file in files)):
        yield "sts", match[1], (match[0],), (match[1],)


def _find_bitext(folder: Path, files: list[str]) -> Found:
    matches = filter(None, (re.fullmatch(r"([^-.]+)-([^-.]+)\.\1", file) for file in files))
    pairs = [m.groups() for m in matches if f"{m[1]}-{m[2]}.{m[2]}" in files and m[1] != m[2]]
    sources = [first for first, _ in pairs]
    for a, b in pairs:
        stem = a if sources.count(a) == 1 else f"{a}-{b}"
        yield "bitext", stem, (f"{a}-{b}.{a}", f"{a}-{b}.{b}"), (a, b)


def _find_classification(folder: Path, files: list[str]) -> Found:
    if {"train.csv", "test.csv"} <= {*files}:
        yield "classification", "", ("train.csv", "test.csv"), ()


FINDERS = (_find_beir, _find_squad, _find_sts, _find_bitext, _find_classification)


def load(task: LocalTask) -> Search | Pairs | Labelled:
    """What its files hold. Raises UserError with file:line where they are not of its form."""
    return READERS[task.form](*task.paths)


def _read_beir(corpus_path: Path, queries_path: Path, judged_path: Path) -> Search:
    corpus, queries = _documents(corpus_path), _documents(queries_path)
    relevant: dict[str, dict[str, int]] = {}
    for number, line in itertools.islice(lines(judged_path), 1, None):  # after the header
        where, cells = f"{judged_path}:{number}", line.rstrip("\r\n").split("\t")
        if len(cells) != 3:
            raise UserError(f"{where}: {len(cells)} cells; it must be query-id, corpus-id and score between tabs")
        query, document, score = cells
        for id_, known, path in ((query, queries, queries_path), (document, corpus, corpus_path)):
            if id_ not in known:
                raise UserError(f"{where}: {path} has no {id_!r}")
        relevant.setdefault(query, {})[document] = _number(score, int, where)
    if not relevant:
        raise UserError(f"{judged_path}: no judgement below the header")
    return Search(queries={id_: queries[id_][1] for id_ in relevant}, corpus=corpus, relevant=relevant)


def _documents(path: Path) -> dict[str, tuple[str, str]]:
    found: dict[str, tuple[str, str]] = {}
    for number, line in lines(path):
        where = f"{path}:{number}"
        try:
            fields = json.loads(line)
            id_, title, text = fields["_id"], fields.get("title") or "", fields["text"]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{where}: not a JSON object with _id and text: {error!r}") from None
        if not all(isinstance(value, str) for value in (id_, title, text)):
            raise UserError(f"{where}: _id, title and text must be strings")
        try:
            f"{id_}{title}{text}".encode()  # JSON can spell half an emoji
        except UnicodeEncodeError as error:
            raise UserError(f"{where}: not valid Unicode: {error}") from None
        if id_ in found:
            raise UserError(f"{where}: _id {id_!r} stood in a line before")
        found[id_] = title, text
    return found


def _read_squad(path: Path) -> Search:
    passages: dict[str, str] = {}
    queries: dict[str, str] = {}
    relevant: dict[str, dict[str, int]] = {}
    for number, record in enumerate(_records(Source(path=str(path)))):
        query = f"q{number}"
        queries[query] = record.query
        relevant[query] = {passages.setdefault(record.positive, f"p{len(passages)}"): 1}
    return Search(queries=queries, corpus={id_: ("", text) for text, id_ in passages.items()}, relevant=relevant)


def _read_bitext(first: Path, second: Path) -> Pairs:
    records = list(_records(Source(path=str(first), positives=str(second))))
    return Pairs(first=[r.query for r in records], second=[r.positive for r in records], score=None)


def _records(source: Source) -> Iterator[Record]:
    for where, record in read(source):
        if isinstance(record, BadRecord):
            raise UserError(f"{where}: {record.reason}")
        yield record


def _read_sts(path: Path) -> Pairs:
    rows = _rows(path)
    where, names = next(rows)
    if not {*PAIR} <= {*names}:  # no header
        if len(names) != 3:
            raise UserError(f"{where}: neither a header with {', '.join(PAIR)} nor a row of them: {', '.join(names)}")
        names, rows = list(PAIR), itertools.chain([(where, names)], rows)
    columns = [names.index(name) for name in PAIR]
    cells = [(where, *(row[column] for column in columns)) for where, row in _whole(rows, names)]
    return Pairs(
        first=[first for _, first, _, _ in cells],
        second=[second for _, _, second, _ in cells],
        score=[_number(score, float, where) for where, _, _, score in cells],
    )


def _read_classification(train_path: Path, test_path: Path) -> Labelled:
    train, test = list(_labelled(train_path)), list(_labelled(test_path))
    numbers = {label: number for number, label in enumerate(sorted({label for _, _, label in train}))}
    for where, _, label in test:
        if label not in numbers:
            raise UserError(f"{where}: {train_path} has no text of label {label!r}")
    split = lambda rows: ([text for _, text, _ in rows], [numbers[label] for _, _, label in rows])
    return Labelled(train=split(train), test=split(test))


def _labelled(path: Path) -> Iterator[tuple[str, str, str]]:
    rows = _rows(path)
    where, names = next(rows)
    label = [name for name in LABEL if name in names]
    if "text" not in names or not label:
        raise UserError(f"{where}: the header must have text and {' or '.join(LABEL)}; it is {', '.join(names)}")
    for where, row in _whole(rows, names):
        yield where, row[names.index("text")], row[names.index(label[0])]


def _rows(path: Path) -> Iterator[tuple[str, list[str]]]:
    """The cells of each row after path:LINE, from the header on."""
    csv.field_size_limit(sys.maxsize)
    table, number, empty = csv.reader((line for _, line in lines(path)), strict=True), 1, True
    try:
        for cells in table:
            empty = False
            yield f"{path}:{number}", cells
            number = table.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}:{number}: {error}") from None
    if empty:
        raise UserError(f"{path}: the file is empty")


def _whole(rows, names: list[str]):
    for where, cells in rows:
        if len(cells) != len(names):
            raise UserError(f"{where}: {len(cells)} cells for {len(names)} columns: {', '.join(names)}")
        yield where, cells


def _number(text: str, kind: type, where: str):
    try:
        if math.isfinite(number := kind(text)):
            return number
    except ValueError:
        pass
    raise UserError(f"{where}: the score is {text!r}, not {'a whole number' if kind is int else 'a number'}")


READERS = {
    "beir": _read_beir,
    "squad": _read_squad,
    "sts": _read_sts,
    "bitext": _read_bitext,
    "classification": _read_classification,
}
