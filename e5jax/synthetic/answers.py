"""One line of the ledger -> one training example, or the reason why not.

Nothing here knows a second line: what two examples have in common is `duplicates`' matter. So the lines can be read in
any order, by any number of processes.
"""

import dataclasses
import functools
import hashlib
import json
import re
import reprlib
from pathlib import Path
from typing import Any

import numpy as np

from e5jax.synthetic import entries, task_types, written_in


# Overrides and isolates of the bidirectional algorithm show another text than a model reads; marks (U+200E, U+200F) are
# a part of Arabic and Hebrew typing and stay, as line feed and tabulator do.
INVISIBLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufeff]")
FENCE = re.compile(r"```[a-z]*\s*(.*?)\s*```", re.DOTALL | re.IGNORECASE)
# An object of strings that was written to its end.
WHOLE = re.compile(r"\{.*[\"'“”]\s*,?\s*\}", re.DOTALL)
COMMA_TOO_MANY = re.compile(r",\s*\}$")
ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.DOTALL)
NOT_A_WORD = re.compile(r"[\W_]+")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rules:
    """What an answer must be."""

    prompt_versions: dict[str, tuple[str, ...]]
    """Those of each task type whose answers are used."""
    check_language: bool
    max_characters: int
    """Of a query or passage."""
    evaluation: str | None
    """A file of `contamination.write`: texts that must not be trained on."""
    heldout: float
    """Share of the tasks whose examples are held out."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """A training example with where it comes from."""

    key: str
    """The ledger's."""
    task_type: str
    number: int
    """Its place in the plan: of two that are the same, the lower one stays."""
    split: str
    """train or heldout."""
    languages: tuple[str, ...]
    """Codes, of query and passages; one where it is the same."""
    task: str
    query: str
    positive: str
    negatives: tuple[str, ...]
    provenance: dict[str, str]
    """model, model_version, prompt_version, response_id, client, time."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rejected:
    """An entry that is not used, and why."""

    key: str
    task_type: str
    reason: str
    """One of a few, to be counted."""
    detail: str


class _Rejection(Exception):
    def __init__(self, reason: str, detail: str):
        super().__init__(reason)
        self.reason, self.detail = reason, detail


def entry(line: bytes) -> dict[str, Any] | None:
    """The entry that a line of the ledger holds; None where the line is torn or damaged."""
    line = line.removesuffix(b"\n")
    if not entries.intact(line):
        return None
    try:
        fields = json.loads(line)
        fields["key"], fields["request"]["kind"], fields["request"]["task_type"]
        return fields
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def example(entry: dict[str, Any], rules: Rules) -> Example | Rejected:
    """The example that an entry of kind `example` or `ranking` holds."""
    request = entry["request"]
    named = {"key": entry["key"], "task_type": request["task_type"]}
    try:
        return _example(entry, request, rules)
    except _Rejection as rejection:
        return Rejected(**named, reason=rejection.reason, detail=rejection.detail)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        return Rejected(**named, reason="damaged entry", detail=f"{type(error).__name__}: {error}")


def _example(entry: dict, request: dict, rules: Rules) -> Example:
    if request["task_type"] not in task_types.ALL:
        raise _Rejection("unknown task type", reprlib.repr(request["task_type"]))
    kind = task_types.ALL[request["task_type"]]
    versions = rules.prompt_versions[kind.name]
    if request["prompt_version"] not in versions:
        raise _Rejection("other prompt version", f"{request['prompt_version']}, not {' or '.join(versions)}")
    answer = entry["answer"]
    if answer is None:
        raise _Rejection("given up", str(entry["gave_up"]))
    if answer["finish_reason"] != "stop":
        raise _Rejection(f"ended by {answer['finish_reason']}", "")
    fields = _fields(answer["text"], kind.keys, rules.max_characters)
    fields = {name: clean(text) for name, text in fields.items()}
    for name, text in fields.items():
        if not text:
            raise _Rejection("empty", name)
        if len(text) > rules.max_characters:
            raise _Rejection("too long", f"{name} has {len(text):,} characters")
    drawn = request["drawn"]
    try:
        record = kind.record(drawn, fields)
    except ValueError as error:
        raise _Rejection("not a ranking", str(error)) from None
    record = {name: text if isinstance(text, list) else clean(text) for name, text in record.items()}
    query, passages = record["query"], [record["positive"], *record["negatives"]]
    forms = [normal(text) for text in (query, *passages)]
    if len(set(forms)) < len(forms):
        raise _Rejection("same text twice", "query, positive and negative are not three texts")
    languages = tuple(drawn[placeholder] for placeholder in kind.languages) or (task_types.ANY_LANGUAGE,)
    if rules.check_language:
        for text, language in [(query, languages[0]), *((text, languages[-1]) for text in passages)]:
            if other := written_in.another_language(text, language):
                raise _Rejection("other language", f"{other}, not {language}: {reprlib.repr(text)}")
    if rules.evaluation is not None and (found := _known(rules.evaluation, forms)) is not None:
        raise _Rejection("in an evaluation set", reprlib.repr([query, *passages][found]))
    task = clean(record["task"])
    return Example(
        key=entry["key"],
        task_type=kind.name,
        number=int(request["number"]),
        split=_split(task, rules.heldout) if kind.asymmetric else "train",
        languages=languages,
        task=task,
        query=query,
        positive=passages[0],
        negatives=tuple(passages[1:]),
        provenance={
            "model": request["sampling"]["model"],
            "model_version": str(answer["model_version"]),
            "prompt_version": request["prompt_version"],
            "response_id": str(answer["response_id"]),
            "client": str(entry.get("client", "")),
            "time": str(entry.get("time", "")),
        },
    )


def _fields(text: str, names: tuple[str, ...], max_characters: int) -> dict[str, str]:
    """The JSON object of an answer, with exactly these names and strings as values."""
    if len(text) > 2 * len(names) * max_characters + 1_000:  # escapes and keys included; parsing it would be waste
        raise _Rejection("too long", f"an answer of {len(text):,} characters")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = _repaired(text)
    if not isinstance(found, dict) or set(found) != set(names):
        what = ", ".join(found) if isinstance(found, dict) else type(found).__name__
        raise _Rejection("other fields", f"{reprlib.repr(what)}, not {', '.join(names)}")
    for name, value in found.items():
        if not isinstance(value, str):
            raise _Rejection("other fields", f"{name} is {reprlib.repr(value)}, not a string")
        try:
            value.encode()
        except UnicodeEncodeError:  # JSON can spell half an emoji
            raise _Rejection("not Unicode", name) from None
    return found


def _repaired(text: str) -> Any:
    """The value of JSON with the wrong quotes, a comma too many or a fence around it; no word is lost or made up."""
    import json_repair

    body = unfenced(text)
    if not WHOLE.fullmatch(body):
        raise _Rejection("not JSON", reprlib.repr(text))
    try:
        found = json.loads(COMMA_TOO_MANY.sub("}", body))  # most often that is all, and json_repair takes 10 ms
    except (ValueError, RecursionError):
        try:
            found = json_repair.loads(body, skip_json_loads=True)
        except (ValueError, RecursionError) as error:
            raise _Rejection("not JSON", str(error)) from None
    words = "".join(f"{name}{value}" for name, value in found.items()) if isinstance(found, dict) else ""
    if NOT_A_WORD.sub("", words) != NOT_A_WORD.sub("", ESCAPE.sub(_unescaped, body)):
        raise _Rejection("not JSON", reprlib.repr(text))
    return found


def unfenced(text: str) -> str:
    """Without the code fence that some models put around JSON."""
    fenced = FENCE.fullmatch(text.strip())
    return fenced[1] if fenced else text.strip()


def _unescaped(match: re.Match) -> str:
    escape = match[1]
    return chr(int(escape[1:], 16)) if len(escape) == 5 else "" if escape in "nrtbf" else escape


def clean(text: str) -> str:
    """Without control characters and bidirectional overrides, line ends as line feeds, nothing at the ends."""
    return INVISIBLE.sub("", text.replace("\r\n", "\n").replace("\r", "\n")).strip()


def normal(text: str) -> str:
    """The form in which texts are the same: case and spacing do not count, as in the paper's appendix B."""
    return "".join(text.casefold().split())


def digest(form: str) -> bytes:
    """8 bytes that stand for a text in its normal form."""
    return hashlib.blake2b(form.encode(), digest_size=8).digest()


def _split(task: str, heldout: float) -> str:
    """By the task alone: no task is in both."""
    return "heldout" if int.from_bytes(digest(normal(task))) < heldout * 2**64 else "train"


def _known(path: str, forms: list[str]) -> int | None:
    """Place of the first form that the evaluation sets have."""
    known = _evaluation(path)
    for i, form in enumerate(forms):
        number = np.frombuffer(digest(form), "<u8")[0]
        at = np.searchsorted(known, number)
        if at < len(known) and known[at] == number:
            return i
    return None


@functools.cache
def _evaluation(path: str) -> np.ndarray:
    return np.load(Path(path), mmap_mode="r", allow_pickle=False)
