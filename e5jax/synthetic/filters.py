"""A ledger -> the examples that are good enough, on one machine.

FOLDER/examples.jsonl  an `answers.Example` a line, in the order of the plan
FOLDER/rejected.jsonl  an `answers.Rejected` a line
FOLDER/tally.jsonl     [what, of which, how many] a line: requests, tokens, cost, rejections

Processes read a segment each, and hand back examples with a number for each pair (exact duplicates) and a signature
(near ones); both are told apart here once all are there. Of 500,000 examples only the signatures are held in memory.
What comes out depends neither on the number of processes nor on the order of the ledger's lines; `beam_pipeline` makes
the same of the same functions.
"""

import collections
import dataclasses
import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from e5jax.errors import UserError
from e5jax.synthetic import answers, duplicates, entries
from e5jax.synthetic.answers import Example, Rejected, Rules


Tally = collections.Counter
"""{(what, of which): how many}."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Segment:
    """What a process makes of one file of answers. Arrays are over its examples."""

    lines: list[bytes]
    keys: list[str]
    types: list[str]
    numbers: list[int]
    pairs: np.ndarray
    signatures: np.ndarray
    rejected: list[Rejected]
    settled: list[str]
    """Keys of all entries but those given up, which can have been asked again."""
    tally: Tally


def run(ledger_folder: Path, folder: Path, rules: Rules, near_duplicates: float, processes: int) -> Tally:
    """Filter every answer of a ledger into `folder`, which gets the files above. UserError where there is no ledger."""
    paths = entries.segments(ledger_folder)
    if not paths:
        raise UserError(f"{ledger_folder}: no ledger here (no answers-00000.jsonl): run e5jax.synthesize first")
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.jsonl"):
        old.unlink()
    tally = Tally()
    work = {name: folder / f"{name}.partial" for name in ("candidates", "signatures")}
    with (folder / "rejected.jsonl").open("w", encoding="utf-8") as rejected:
        found = _candidates(paths, rules, near_duplicates < 1, processes, work, rejected, tally)
        _write_kept(*found, near_duplicates, work, folder / "examples.jsonl", rejected, tally)
    for path in work.values():
        path.unlink()
    with (folder / "tally.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(tally_line(name, count) for name, count in sorted(tally.items()))
    return tally


def _candidates(paths, rules, near, processes, work, rejected: TextIO, tally: Tally) -> tuple[np.ndarray, ...]:
    """Everything that is good by itself: (types, numbers, keys, pairs, lengths of lines), in the ledger's order."""
    parts: list[tuple[np.ndarray, ...]] = []
    given_up: dict[str, Rejected] = {}
    with work["candidates"].open("wb") as lines, work["signatures"].open("wb") as signatures:
        for part in _segments(paths, rules, near, processes):
            lines.writelines(part.lines)
            signatures.write(part.signatures.tobytes())
            arrays = (np.array(part.types, str), np.array(part.numbers, np.int64), np.array(part.keys, str))
            parts.append((*arrays, part.pairs, np.array([len(line) for line in part.lines], np.int64)))
            tally.update(part.tally)
            for row in part.rejected:
                if row.reason == GIVEN_UP:
                    given_up[row.key] = row
                else:
                    _reject(row, rejected, tally)
            for key in part.settled:
                given_up.pop(key, None)
    for row in given_up.values():
        _reject(row, rejected, tally)
    return tuple(np.concatenate(columns) for columns in zip(*parts, strict=True))


def _segments(paths: list[Path], rules: Rules, near: bool, processes: int) -> Iterator[_Segment]:
    """Each file's part, in order; no more than two a process are under way or waiting."""
    if min(processes, len(paths)) == 1:
        yield from (_segment(path, rules, near) for path in paths)
        return
    waiting = collections.deque()
    # A forked process would inherit locks of threads that it does not have.
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for path in paths:
            waiting.append(pool.submit(_segment, path, rules, near))
            if len(waiting) == 2 * processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _segment(path: Path, rules: Rules, near: bool) -> _Segment:
    rows, signatures, rejected, settled, tally = [], [], [], [], Tally()
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            found, entry = judge(line, f"{path.name}:{number}", rules)
            tally.update(tally_of(entry))
            if isinstance(found, Rejected):
                rejected.append(found)
            elif found is not None:
                rows.append((line_of(found).encode(), found.key, found.task_type, found.number, pair(found)))
                if near:
                    signatures.append(signature(found))
            if entry is not None and entry.get("answer") is not None:
                settled.append(entry["key"])
    lines, keys, types, numbers, pairs = map(list, zip(*rows, strict=True)) if rows else ([] for _ in range(5))
    return _Segment(
        lines=lines,
        keys=keys,
        types=types,
        numbers=numbers,
        pairs=np.array(pairs, np.uint64),
        signatures=np.array(signatures, np.uint32),
        rejected=rejected,
        settled=settled,
        tally=tally,
    )


def _write_kept(types, numbers, keys, pairs, lengths, near_duplicates, work, path, rejected, tally) -> None:
    """All but duplicates, in the order of the plan."""
    order = np.lexsort((keys, numbers, types))
    starts = np.cumsum(lengths) - lengths
    keys, pairs, types = keys[order], pairs[order], types[order]
    same_key = duplicates.first_of_each(keys)
    kept = np.flatnonzero(same_key == np.arange(len(keys)))
    first = kept[duplicates.first_of_each(pairs[kept])]
    reasons = {i: (TWICE, same_key[i]) for i in np.flatnonzero(same_key != np.arange(len(keys)))}
    reasons |= {i: (EXACT, j) for i, j in zip(kept, first, strict=True) if i != j}
    kept = kept[first == kept]
    if near_duplicates < 1 and len(kept):
        signatures_NP = np.memmap(work["signatures"], np.uint32, "r").reshape(-1, duplicates.PERMUTATIONS)[order[kept]]
        found = duplicates.near(signatures_NP, near_duplicates)
        reasons |= {kept[i]: (NEAR, kept[j]) for i, j in found.items()}
    with work["candidates"].open("rb") as lines, path.open("wb") as out:
        for i, where in enumerate(order):
            if i in reasons:
                reason, other = reasons[i]
                row = Rejected(key=str(keys[i]), task_type=str(types[i]), reason=reason, detail=f"of {keys[other]}")
                _reject(row, rejected, tally)
            else:
                lines.seek(starts[where])
                out.write(lines.read(lengths[where]))


def _reject(row: Rejected, file: TextIO, tally: Tally) -> None:
    file.write(line_of(row))
    tally[rejection(row)] += 1


EXAMPLES = ("example", "ranking")  # kinds of request whose answer is an example
GIVEN_UP = "given up"
TWICE, EXACT, NEAR = "asked twice", "duplicate", "near duplicate"


def judge(line: bytes, where: str, rules: Rules) -> tuple[Example | Rejected | None, dict[str, Any] | None]:
    """(what a line of the ledger is worth, its entry); (None, entry) for what was no request for an example."""
    entry = answers.entry(line)
    if entry is None:
        return Rejected(key="", task_type="", reason="damaged line", detail=where), None
    return (answers.example(entry, rules) if entry["request"]["kind"] in EXAMPLES else None), entry


def pair(example: Example) -> int:
    """A number for query and positive, the same for the same texts, case and spacing aside."""
    return int.from_bytes(answers.digest(f"{answers.normal(example.query)}\0{answers.normal(example.positive)}"))


def signature(example: Example) -> np.ndarray:
    """MinHash of query and positive together."""
    return duplicates.signature(f"{example.query}\n{example.positive}")


def line_of(row: Example | Rejected) -> str:
    """As a line of JSON."""
    return json.dumps(vars(row), ensure_ascii=False) + "\n"


def rejection(row: Rejected) -> tuple[str, str]:
    """Under what a rejection is counted."""
    return f"rejected {row.task_type or 'of no known type'}", row.reason


def tally_of(entry: dict[str, Any] | None) -> dict[tuple[str, str], int]:
    """What one entry of the ledger adds to the tally."""
    if entry is None:
        return {}
    request, answer = entry["request"], entry.get("answer")
    model = request.get("sampling", {}).get("model", "unknown")
    counts = {("requests", request["kind"]): 1, ("nanodollars", model): entry.get("cost", 0)}
    if isinstance(answer, dict):
        counts["answers", request["kind"]] = 1
        counts["tokens", "prompts"] = answer.get("prompt_tokens", 0)
        counts["tokens", "answers"] = answer.get("answer_tokens", 0)
    return counts


def tally_line(name: tuple[str, str], count: int) -> str:
    """As a line of JSON."""
    return json.dumps([*name, count], ensure_ascii=False) + "\n"


def read_tally(folder: Path) -> Tally:
    """The tally of a folder that `run` or the Beam pipeline wrote."""
    lines = (line for path in sorted(folder.glob("tally*.jsonl")) for line in path.open(encoding="utf-8"))
    return Tally({(what, name): count for what, name, count in map(json.loads, lines)})
