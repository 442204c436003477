"""What a restart must know of batch jobs: FOLDER/batches.jsonl, a line for each step of a job, and FOLDER/NAME.jsonl,
the requests of a job that has not ended."""

import dataclasses
import json
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from e5jax.files import write_text
from e5jax.synthetic.request import Request, Sampling


class Journal:
    """The jobs of a ledger. A step is on disk when the call that notes it returns."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder

    def begin(self, name: str, requests: Iterable[Request]) -> None:
        """A job with these requests is about to be counted, then submitted."""
        lines = (json.dumps(dataclasses.asdict(request)) + "\n" for request in requests)
        write_text(self._folder / f"{name}.jsonl", "".join(lines))
        self._note(name, "begun", {})

    def counted(self, name: str) -> None:
        """Its tries are in the ledger; from now on it may have been submitted."""
        self._note(name, "counted", {})

    def submitted(self, name: str, remote: str) -> None:
        """The API has it, under a name of its own."""
        self._note(name, "submitted", {"job": remote})

    def ended(self, name: str, state: str) -> None:
        """All of it is in the ledger, or given back."""
        self._note(name, "ended", {"state": state})
        (self._folder / f"{name}.jsonl").unlink(missing_ok=True)

    def open_jobs(self) -> Iterator[tuple[str, str | None, list[Request]]]:
        """(our name, the API's or None where it may not have been submitted, requests) of jobs that have not ended."""
        jobs, path = {}, self._folder / "batches.jsonl"
        for line in path.read_bytes().split(b"\n") if path.exists() else ():
            try:
                note = json.loads(line)
                jobs[note["batch"]] = note
            except (ValueError, KeyError, TypeError):  # torn off by a crash
                continue
        for name, note in jobs.items():
            requests = self._folder / f"{name}.jsonl"
            if note["event"] in ("counted", "submitted") and requests.exists():
                lines = requests.read_text(encoding="utf-8").split("\n")
                yield name, note.get("job"), [_request(line) for line in lines if line]
            elif note["event"] != "ended":
                self.ended(name, "NEVER SUBMITTED")

    def _note(self, name: str, event: str, about: dict) -> None:
        note = {"batch": name, "event": event, **about, "time": round(time.time(), 3)}
        with (self._folder / "batches.jsonl").open("ab") as file:
            # A newline on both sides: a line that a crash tore off must not swallow this one.
            file.write(b"\n" + json.dumps(note).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def _request(line: str) -> Request:
    fields = json.loads(line)
    return Request(**{**fields, "sampling": Sampling(**fields["sampling"])})
