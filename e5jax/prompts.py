"""Which instruction a task's texts carry: the table of E5-Mistral's evaluation, or another one.

`prompt_table.json` is table 15 of Wang et al. 2024 (arXiv 2401.00368, appendix D) under mteb's task names, with MIRACL
and SQuAD as in their training data (table 14). A file of the same form replaces it: {task or task type: instruction}.
"""

import dataclasses
import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from e5jax.errors import UserError
from e5jax.records import existing


PAPER: dict[str, str] = json.loads(Path(__file__).with_name("prompt_table.json").read_text(encoding="utf-8"))

# The same texts under other names: mteb's newer sets, parts of a set, local copies.
SAME_TEXTS = (
    (r"CQADupstack[A-Z]\w+Retrieval", "CQADupstackRetrieval"),
    (r"ArXivHierarchicalClustering(P2P|S2S)", r"ArxivClustering\1"),
    (r"Touche2020Retrieval", "Touche2020"),
    (r"SummEvalSummarization", "SummEval"),
    (r"STSBenchmarkMultilingualSTS|stsb(-.+)?", "STSBenchmark"),
    (r"tatoeba(-.+)?", "Tatoeba"),
    (r"xquad(-.+)?", "XQuADRetrieval"),
    (r"banking77", "Banking77Classification"),
)
# What mteb appends to the name of a set when it is made smaller or cleaner.
EDITION = re.compile(r"(HardNegatives|Decontaminated)?(\.v\d+)?$")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptTable:
    """Instructions by task name or mteb task type."""

    instructions: Mapping[str, str] | None
    """None: nothing stands in front of any text, whatever the model's files want."""
    chosen: bool
    """Whether the user asked for this table: then models that ask for no instruction get one too."""


def load_table(prompts: str | None) -> PromptTable:
    """None: the paper's table. "none": nothing in front of any text. Else a JSON file {task: instruction}.

    Raises UserError, with the file and the task, where the file is no such thing.
    """
    if prompts is None:
        return PromptTable(instructions=PAPER, chosen=False)
    if prompts == "none":
        return PromptTable(instructions=None, chosen=True)
    path = existing(prompts)
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a JSON file of instructions: {error}") from None
    if not isinstance(table, dict) or not table:
        raise UserError(f'{path}: it must be a JSON object, {{"TASK": "INSTRUCTION", ...}}')
    for task, text in table.items():
        if not isinstance(text, str):
            raise UserError(f"{path}: the instruction of {task!r} must be a string, not {json.dumps(text)[:60]}")
    return PromptTable(instructions=table, chosen=True)


def instruction(table: PromptTable, task: str, task_type: str, default: str) -> str | None:
    """The instruction of a task; None for none.

    As in mteb, the first of: the task's own name in the table, its type there (`STS`, `BitextMining`), `default`, which
    is the prompt of mteb's metadata or the one of its task type. Here the same texts under another name count as the
    task's own name. An empty instruction means none.
    """
    if table.instructions is None:
        return None
    for name in (*_names(task), task_type):
        if name in table.instructions:
            return table.instructions[name] or None
    return default or None


def for_task(name: str) -> str:
    """The paper's instruction of a task, for `--task NAME`. Raises UserError with the nearest names."""
    for known in _names(name):
        if known in PAPER:
            return PAPER[known]
    raise UserError(f"no instruction for a task {name!r}{nearest(name, PAPER)} (--instruction TEXT gives one directly)")


def nearest(name: str, known: Iterable[str]) -> str:
    """ "; did you mean A, B?" for a name nobody knows, letter case aside; "" where nothing is like it."""
    by_lower = {k.lower(): k for k in known}
    near = difflib.get_close_matches(name.lower(), by_lower, n=3)
    return f"; did you mean {', '.join(by_lower[n] for n in near)}?" if near else ""


def _names(task: str) -> Iterator[str]:
    """The task, then what else its texts are called."""
    yield task
    plain = EDITION.sub("", task)
    yield plain
    for pattern, name in SAME_TEXTS:
        if match := re.fullmatch(pattern, plain):
            yield match.expand(name)
