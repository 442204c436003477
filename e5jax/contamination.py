"""Training texts that evaluation sets have too (arXiv 2401.00368, appendix B): string match, case and spacing aside.

    python -m e5jax.contamination --train data/e5/nq.jsonl data/e5/triviaqa.jsonl --tasks xquad-en --output found.json

The paper found four of DBPedia's questions in TriviaQA. Of an evaluation set the queries count: `text` of BEIR's
queries.jsonl, every string of other files, the queries of a local task (both sentences of pairs). Texts of less than
24 bytes without their spaces do not count, as anybody says them.
"""

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from e5jax import command, files, local_tasks, places, records
from e5jax.config import ContaminationConfig
from e5jax.errors import UserError
from e5jax.local_tasks import Labelled, Pairs, Search
from e5jax.prompts import nearest
from e5jax.records import BadRecord, Record, Source
from e5jax.synthetic import contamination
from e5jax.synthetic.answers import digest, normal


PROG = "python -m e5jax.contamination"
FIRST = 10
"""Places that are named, of a set in a source."""
QUERIES = "queries.jsonl"


@dataclasses.dataclass
class Match:
    """What a source has of an evaluation set."""

    found: set[bytes]
    """Its texts, each once."""
    queries: int
    positives: int
    """Records whose query, or positive passage, is one of them."""
    first: list[str]


def check(config: ContaminationConfig) -> dict:
    """Compare, write the report and print a table -> the report."""
    sets = _evaluation(config)
    clean = _clean(config)
    found = {source: _compare(source, sets, clean.get(source)) for source in config.train}
    report = {
        "evaluation": [
            {
                "set": name,
                "queries": len(texts),
                "found": len(set().union(*(matches[name].found for _, matches in found.values()))),
                "sources": [
                    {"source": source, "found": len(m.found), "queries": m.queries, "positives": m.positives}
                    | {"first": m.first}
                    for source, (_, matches) in found.items()
                    if (m := matches[name]).found
                ],
            }
            for name, texts in sets.items()
        ],
        "train": [{"source": source} | counts for source, (counts, _) in found.items()],
    }
    with places.output(config.output) as path:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(path, report)
    print(_markdown(report))
    return report


def _evaluation(config: ContaminationConfig) -> dict[str, frozenset[bytes]]:
    """{set: its texts as digests}"""
    sets = {name: _digests(_texts(records.existing(name))) for name in config.evaluation}
    if config.tasks:
        data_dir = config.data_dir or os.environ.get("E5JAX_DATA")
        if data_dir is None:
            raise UserError("--tasks need $E5JAX_DATA or --data-dir, the folder with their data")
        there = local_tasks.discover(records.existing(data_dir))
        for name in config.tasks:
            if name not in there:
                raise UserError(f"no task {name!r} in {data_dir}{nearest(name, there)}; there are {', '.join(there)}")
            sets[name] = _digests(_queries(local_tasks.load(there[name])))
    for name, texts in sets.items():
        if not texts:
            raise UserError(f"{name}: no text of at least {contamination.COMMON_BYTES} bytes without spaces")
    return sets


def _digests(texts: Iterable[str]) -> frozenset[bytes]:
    forms = map(normal, texts)
    return frozenset(digest(form) for form in forms if len(form.encode()) >= contamination.COMMON_BYTES)


def _texts(path: Path) -> Iterator[str]:
    if path.name != QUERIES:
        yield from contamination.texts(path)
        return
    for number, line in records.lines(path):
        try:
            yield json.loads(line)["text"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"{path}:{number}: not a query with _id and text: {error!r}") from None


def _queries(data: Search | Pairs | Labelled) -> Iterable[str]:
    if isinstance(data, Search):
        return data.queries.values()
    return [*data.first, *data.second] if isinstance(data, Pairs) else data.test[0]


def _clean(config: ContaminationConfig) -> dict[str, Path]:
    """{source: the file for what is left of it}; UserError where it would replace something."""
    if config.write_clean is None:
        return {}
    folder = places.local(config.write_clean)
    folder.mkdir(parents=True, exist_ok=True)
    clean = {source: folder / f"{Path(source).name.removesuffix(Path(source).suffix)}.jsonl" for source in config.train}
    if len(set(clean.values())) < len(clean):
        raise UserError(f"--train: two sources would both become one file of {folder}: run them one by one")
    if there := [path for path in clean.values() if path.exists()]:
        raise UserError(f"{there[0]} is there already: remove it, or choose another --write-clean")
    return clean


def _compare(source: str, sets: dict[str, frozenset[bytes]], clean: Path | None) -> tuple[dict, dict[str, Match]]:
    """-> (records and how many of them match, {set: its match})"""
    matches = {name: Match(set(), 0, 0, []) for name in sets}
    read = matching = 0
    whole = contextlib.nullcontext() if clean is None else files.whole(clean)
    with whole as kept, tqdm(desc=source, unit=" records", delay=1, disable=None) as progress:
        for where, record in records.read(Source(path=source)):
            if isinstance(record, BadRecord):
                raise UserError(f"{where}: {record.reason}")
            sides = {"query": digest(normal(record.query)), "positive": digest(normal(record.positive))}
            hits = {name: {side for side in sides if sides[side] in texts} for name, texts in sets.items()}
            for name, hit in hits.items():
                _note(matches[name], where, record, hit, sides)
            read, matching = read + 1, matching + any(hits.values())
            if kept is not None and not any(hits.values()):
                kept.write(json.dumps(dataclasses.asdict(record), ensure_ascii=False).encode() + b"\n")
            progress.update()
    return {"records": read, "matching": matching}, matches


def _note(match: Match, where: str, record: Record, hit: set[str], sides: dict[str, bytes]) -> None:
    for side in sorted(hit):
        match.found.add(sides[side])
        if len(match.first) < FIRST:
            match.first.append(f"{where}: {side}: {getattr(record, side)[:200]}")
    match.queries += "query" in hit
    match.positives += "positive" in hit


def _markdown(report: dict) -> str:
    """A row a set and source that have something in common."""
    rows = ["| evaluation set | texts | found | in | as query | as positive |", "|---|---:|---:|---|---:|---:|"]
    for one in report["evaluation"]:
        for found in one["sources"] or [{"source": "", "found": 0, "queries": 0, "positives": 0}]:
            cells = (found["found"], found["source"], found["queries"], found["positives"])
            rows.append(f"| {one['set']} | {one['queries']:,} | {' | '.join(map(str, cells))} |")
    return "\n".join(rows)


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    return command.main(check, ContaminationConfig, PROG, argv, needs_file=False)


if __name__ == "__main__":
    sys.exit(main())
