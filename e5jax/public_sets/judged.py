"""Copies in the form of a search collection: queries, documents, and files that say which belongs to which.

Judgements are read first and say which texts are needed; then the collection goes by once, and only those are kept in
memory: MS MARCO's documents, the largest, come to a few gigabytes of the 22.
"""

import dataclasses
import json
import random
import re
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from e5jax.errors import UserError
from e5jax.public_sets.formats import Choice, Found, Picked, Reader, cells, chosen, joined, lines, usable


HEADERS = {"query-id", "qid", "pid", "id", "query_id", "docid"}  # first cells of lines that name columns
# The cells of a judgement (query, document, grade) by how many there are: TREC's, BEIR's, T2Ranking's.
JUDGEMENT = {4: (0, 2, 3), 3: (0, 1, 2), 2: (0, 1, None)}

Texts = Callable[[Path], Iterator[tuple[str, str]]]
"""A file's (id, text)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Columns:
    """Where a file of negatives has what; every line is a pair."""

    query: int
    document: int
    grade: int | None
    """Only lines with a 0 here are negatives; None: all of them."""


def of_judgements(queries: Texts, documents: Texts, negatives: dict[str, Columns], part: str) -> Reader:
    """A reader of copies with the roles `queries`, `documents`, `judgements`, and one of `negatives`, the first there.

    A query gives one example. `part`: a pattern whose group tells collections apart whose ids overlap (languages) by
    their files' paths; "" where there is only one.
    """

    def read(paths: dict[str, list[Path]], choice: Choice) -> Found:
        for files in _parts(paths, part):
            relevant = _relevant(files["judgements"])
            asked = _kept(queries, files["queries"], relevant, choice.characters)
            against = _against(files, negatives, relevant, choice)
            picked = {
                query: chosen(query, found, against.get(query, ()), choice)
                for query, found in relevant.items()
                if query in asked
            }
            wanted = {document for positive, rest in picked.values() for document in (positive, *rest)}
            texts = _kept(documents, files["documents"], wanted, choice.characters)
            for query in relevant:
                yield _example(asked.get(query), picked.get(query), texts)

    return read


def _parts(paths: dict[str, list[Path]], part: str) -> Iterator[dict[str, list[Path]]]:
    def of(path: Path) -> str:
        found = re.search(part, path.as_posix()) if part else None
        return found[1] if found else ""

    for name in sorted({of(path) for path in paths["judgements"]}):
        files = {role: [path for path in found if of(path) == name] for role, found in paths.items()}
        if lacking := [role for role in ("queries", "documents") if not files[role]]:
            raise UserError(f"{files['judgements'][0]}: the {' and '.join(lacking)} of {name} are not there")
        yield files


def _relevant(paths: list[Path]) -> dict[str, list[str]]:
    """{query: its relevant documents}, in the order of the files."""
    relevant: dict[str, list[str]] = {}
    for path in paths:
        for number, row in cells(path):
            if number == 1 and row and row[0] in HEADERS:
                continue
            if len(row) not in JUDGEMENT:
                raise UserError(
                    f"{path}:{number}: {len(row)} cells; a judgement has a query, a document, often a grade"
                )
            query, document, grade = JUDGEMENT[len(row)]
            if grade is None or _grade(row[grade], path, number) > 0:
                relevant.setdefault(row[query], []).append(row[document])
    return relevant


def _grade(cell: str, path: Path, number: int) -> float:
    try:
        return float(cell)
    except ValueError:
        raise UserError(f"{path}:{number}: the grade is {cell!r}, not a number") from None


def _against(files, negatives: dict[str, Columns], relevant: dict[str, list[str]], choice: Choice):
    """{query: documents that are not relevant}, at most `choice.negatives` a query, each with the same chance."""
    role = next((role for role in negatives if files.get(role)), None)
    if role is None or choice.negatives == 0:
        return {}
    columns, draw = negatives[role], random.Random(f"{choice.seed} {role}")
    needed = max(columns.query, columns.document, columns.grade or 0)
    seen: dict[str, int] = {}
    kept: dict[str, list[str]] = {}
    for path in files[role]:
        for number, row in tqdm(cells(path), path.name, unit=" lines", delay=1, disable=None):
            if number == 1 and row and row[0] in HEADERS:
                continue
            if len(row) <= needed:
                raise UserError(f"{path}:{number}: {len(row)} cells; a query and a document are looked for in it")
            query, document = row[columns.query], row[columns.document]
            if query not in relevant or document in relevant[query]:
                continue
            if columns.grade is not None and _grade(row[columns.grade], path, number) > 0:
                continue
            # A reservoir: files of 200 million lines are not held in memory.
            seen[query] = seen.get(query, 0) + 1
            place = int(draw.random() * seen[query])
            here = kept.setdefault(query, [])
            if len(here) < choice.negatives:
                here.append(document)
            elif place < choice.negatives:
                here[place] = document
    return kept


def _kept(texts: Texts, paths: list[Path], wanted: Container[str], characters: int) -> dict[str, str]:
    """The texts of the wanted ids, cut: they are in memory."""
    found = {}
    for path in paths:
        for name, text in tqdm(texts(path), path.name, unit=" texts", delay=1, disable=None):
            if name in wanted:
                found[name] = text[:characters]
    return found


def _example(query: str | None, picked: Any, texts: dict[str, str]) -> Picked | str:
    if query is None or not usable(query):
        return "no query"
    positive, negatives = picked
    if positive not in texts:
        return "its passage is not in the collection"
    if not usable(texts[positive]):
        return "no positive passage"
    return Picked(query, texts[positive], tuple(texts[n] for n in negatives if n in texts and usable(texts[n])))


def tsv(title: int | None, text: int) -> Texts:
    """Lines of cells between tabs: the id first, the title and the text in these columns."""

    def texts(path: Path) -> Iterator[tuple[str, str]]:
        for number, line in lines(path):
            row = line.rstrip("\r\n").split("\t")
            if len(row) <= text:
                raise UserError(f"{path}:{number}: {len(row)} cells between tabs; the text is looked for in {text + 1}")
            yield row[0], joined(None if title is None else row[title], row[text])

    return texts


def jsonl(name: str) -> Texts:
    """JSON lines with the id in the field `name`, perhaps a title, and text."""

    def texts(path: Path) -> Iterator[tuple[str, str]]:
        for number, line in lines(path):
            try:
                row = json.loads(line)
                yield row[name], joined(row.get("title"), row["text"])
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise UserError(f"{path}:{number}: no JSON object with {name} and text: {error!r}") from None

    return texts
