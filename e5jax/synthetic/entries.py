"""The lines of a ledger: how one is written and checked, and how all are read.

A line has `key`, `cost` (nano-dollars, of all its tries), `tokens`, `tries`, `gave_up` (why there is no answer, or
null), `time`, `client`, `request` and `answer`, behind the CRC-32 of all that. One without the CRC, written by other
hands, is good if it is JSON with a key and a cost.
"""

import dataclasses
import json
import logging
import re
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

from e5jax.errors import UserError
from e5jax.synthetic.budget import Spent
from e5jax.synthetic.request import Answer, Request


OF_REQUEST = ("kind", "task_type", "number", "prompt_version", "drawn", "prompt")
HEAD = ("key", "cost", "tokens", "tries", "gave_up")  # first in every line, so that opening parses no JSON
CHECKED = re.compile(rb'\{"crc32":"([0-9a-f]{8})",')
HEAD_PATTERN = re.compile(rb'"key":"([^"\\]+)","cost":(\d+),"tokens":(\d+),"tries":(\d+),"gave_up":(null|")')

log = logging.getLogger(__name__)


def entry(request: Request, answer: Answer | None, gave_up: str | None, spent: Spent, client: str) -> dict:
    """What the ledger keeps of a settled request; `spent` is what all its tries came to."""
    asked = {name: getattr(request, name) for name in OF_REQUEST}
    return {
        "key": request.key,
        "cost": spent.nanodollars,
        "tokens": spent.tokens,
        "tries": spent.requests,
        "gave_up": gave_up,
        "time": round(time.time(), 3),
        "client": client,
        "request": {**asked, "sampling": dataclasses.asdict(request.sampling)},
        "answer": None if answer is None else dataclasses.asdict(answer),
    }


def segments(folder: Path) -> list[Path]:
    """The files of a ledger, in order; each can be read on its own."""
    return sorted(Path(folder).glob("answers-*.jsonl"))


def read(folder: Path) -> Iterator[dict]:
    """The entries of a ledger, which may be in use, in order; what cannot be read is left out with a warning.

    A request that was given up and then asked again comes once, as it ended. UserError where there is no ledger.
    """
    paths = segments(folder)
    if not paths:
        raise UserError(f"{folder}: no ledger here (no answers-00000.jsonl)")
    lines_left: dict[str, int] = {}  # of requests that were given up
    if odd := [path for path in paths if not path.is_file()]:
        raise UserError(f"{odd[0]}: no file that can be read")
    for path in paths:
        for _, _, head in heads(path):
            if head is not None and (head[2] or head[0] in lines_left):
                lines_left[head[0]] = lines_left.get(head[0], 0) + 1
    for path in paths:
        for found in read_segment(path):
            if found["key"] in lines_left:
                lines_left[found["key"]] -= 1
            if lines_left.get(found["key"], 0) <= 0:
                yield found


def read_segment(path: Path) -> Iterator[dict]:
    """The entries of one file as they stand; what cannot be read is left out with a warning."""
    for number, line, head in heads(path):
        if head is not None:
            yield json.loads(line)
        elif line.endswith(b"\n"):  # else it is just being written
            log.warning("%s:%d: a damaged line is left out", path, number)


def heads(path: Path) -> Iterator[tuple[int, bytes, tuple[str, Spent, bool] | None]]:
    """(line number, line, (key, what it came to, whether it was given up)); None for a damaged or torn line."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            yield number, line, _head(line)


def to_line(entry: dict) -> bytes:
    """An entry as it stands in a ledger."""
    fields = {**{name: entry[name] for name in HEAD}, **entry}
    try:
        body = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:  # half an emoji
        body = json.dumps(fields, separators=(",", ":")).encode()
    return b'{"crc32":"%08x",' % zlib.crc32(body[1:]) + body[1:] + b"\n"


def intact(line: bytes) -> bool:
    """Whether a line, without its line feed, is what its CRC says; one without a CRC is."""
    checked = CHECKED.match(line)
    return checked is None or zlib.crc32(line[checked.end() :]) == int(checked[1], 16)


def _head(line: bytes) -> tuple[str, Spent, bool] | None:
    if not line.endswith(b"\n") or not intact(line[:-1]):
        return None
    if checked := CHECKED.match(line):
        head = HEAD_PATTERN.match(line, checked.end())
        if head is None:
            return None
        return head[1].decode(), Spent(int(head[2]), int(head[3]), int(head[4])), head[5] != b"null"
    try:
        fields = json.loads(line)
        spent = Spent(int(fields["cost"]), int(fields.get("tokens", 0)), int(fields.get("tries", 1)))
        return (fields["key"], spent, fields.get("gave_up") is not None) if isinstance(fields["key"], str) else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
