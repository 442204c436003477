"""The Markdown card of a dataset: what is in it, where it comes from, what may be done with it."""

from e5jax.synthetic.languages import NAMES
from e5jax.synthetic.task_types import ALL


HEAD = """\
# synthetic_text_embeddings/{dataset}

{examples:,} training examples for text embedding models, written by {models} in the manner of Wang et al. 2024,
*Improving Text Embeddings with Large Language Models* ([arXiv 2401.00368](https://arxiv.org/abs/2401.00368), section
3.1). Each has an instruction, a query, a passage that answers it and, in most types, one that only seems to.

```python
from e5jax.records import Source, read

source = Source(path="{folder}", split="train")
```
"""

SOURCE = """\
## Splits

{splits}.

No task is in both: a hash of the task decides. The symmetric types (sts, bitext) have one task each and are in `train`.

## Fields

`task_type`, `languages` (one code; for bitext those of query and passages), `task`, `query`, `positive`, `negatives`
(none or one), `provenance` (`key` in the ledger, `model`, `model_version`, `prompt_version`, `response_id`, `client`,
`time` in seconds since 1970).

## Licence and use

These are a language model's words: the terms of its provider say what they may be used for, and some do not allow to
train models that compete with theirs. Nobody has checked them for truth. Personal names in them are made up or
coincidental. Evaluation sets are kept out where they were named (`decontaminate`), whole texts only.

`SHA256SUMS` has the checksum of every file: `sha256sum --check SHA256SUMS`.
"""


def card(numbers: dict, folder: str) -> str:
    """The card of a dataset with these statistics (`statistics.to_json`), whose folder has the name `folder`."""
    models = ", ".join(f"{model}" for model in numbers["models"])
    splits = ", ".join(f"`{split}` {number:,}" for split, number in numbers["splits"].items())
    parts = [
        HEAD.format(**numbers | {"models": models}, folder=folder),
        SOURCE.format(splits=splits),
        "## Examples by type\n\n![types](pictures/types.png)\n",
        _types(numbers),
        "## Languages\n\n![languages](pictures/languages.png)\n",
        _languages(numbers),
        "## Lengths\n\n![lengths](pictures/lengths.png)\n",
        _lengths(numbers["lengths"]),
        "## From answers to examples\n",
        _ledger(numbers["ledger"]),
    ]
    if numbers["rejected"]:
        parts += ["![rejections](pictures/rejections.png)\n", _rejected(numbers["rejected"])]
    return "\n".join(parts)


def _types(numbers: dict) -> str:
    paper = sum(ALL[kind].share for kind in numbers["types"])
    rows = [
        [kind, f"{n:,}", _percent(n / numbers["examples"]), _percent(ALL[kind].share / (paper or 1)), f"{tasks:,}"]
        for kind, n in numbers["types"].items()
        for tasks in [numbers["unique_tasks"][kind]]
    ]
    return table(["type", "examples", "share", "paper", "different tasks"], rows)


def _languages(numbers: dict) -> str:
    rows = [
        [f"{NAMES.get(c, 'not asked for')} ({c})", f"{n:,.1f}", _percent(n / numbers["examples"])]
        for c, n in numbers["languages"].items()
    ]
    return table(["language", "examples (bitext: half for each)", "share"], rows)


def _lengths(lengths: dict) -> str:
    head = ["type", "text", *(f"{p} %" for p in lengths["percentiles"])]
    rows = [
        [kind, part, *(f"{value:,}" for value in values)]
        for kind, parts in lengths["by_type"].items()
        for part, values in parts.items()
    ]
    said = f"Percentiles in {lengths['unit']}, of {lengths['measured']:,} examples.\n\n"
    return said + table(head, rows)


def _ledger(ledger: dict) -> str:
    rows = [[kind, f"{n:,}", f"{ledger['answers'].get(kind, 0):,}"] for kind, n in ledger["requests"].items()]
    tokens = ", ".join(f"{n:,} in {kind}" for kind, n in ledger["tokens"].items())
    dollars = ", ".join(f"${amount:,.4f} for {model}" for model, amount in ledger["dollars"].items())
    return table(["request", "asked", "answered"], rows) + f"\nTokens: {tokens or 'none'}. Cost: {dollars or 'none'}.\n"


def _rejected(rejected: dict[str, dict[str, int]]) -> str:
    rows = [
        [reason, f"{sum(by.values()):,}", ", ".join(f"{k} {n:,}" for k, n in by.items())]
        for reason, by in rejected.items()
    ]
    return table(["why not", "answers", "of type"], rows)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; no cell may hold a bar."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |\n" for line in lines)
