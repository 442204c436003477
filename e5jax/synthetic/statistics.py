"""What a dataset has, in numbers, words and pictures: the paper's figure 2, and what became of every answer.

VERSION/statistics.json, VERSION/README.md (the card), VERSION/pictures/*.png
"""

import collections
import dataclasses
import json
from collections import Counter
from pathlib import Path

import numpy as np

from e5jax import files
from e5jax.errors import UserError
from e5jax.synthetic import answers, charts, filters
from e5jax.synthetic.card import card
from e5jax.synthetic.languages import NAMES, PAPER
from e5jax.synthetic.task_types import ALL


SAMPLE = 20_000
"""Examples whose lengths are measured: every k-th."""
PERCENTILES = (5, 25, 50, 75, 95)
PARTS = ("query", "positive", "negative")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counted:
    """The examples of one dataset, counted."""

    name: str
    passed: int
    """Examples that passed the filters, those that other datasets have included."""
    splits: Counter
    types: Counter
    languages: Counter
    """Bitext counts half for each of its two."""
    tasks: Counter
    """Different tasks by type."""
    models: Counter
    tally: Counter
    """Of the whole ledger; see `filters`."""
    sample: list[dict]
    """Examples to measure."""

    def said(self) -> str:
        """In one line: how many examples, and how many rejections for which reason."""
        reasons = rejections(self.tally)
        lost = ", ".join(f"{sum(by.values()):,} {reason}" for reason, by in reasons.items())
        return f"{self.splits.total():,} examples; rejected: {lost or 'none'}"


def count(filtered: Path, name: str) -> Counted:
    """Count the examples in a folder of the filters that the dataset `name` has, in one pass."""
    from e5jax.synthetic.synthetic_text_embeddings.synthetic_text_embeddings_dataset_builder import chosen

    splits, types, languages, models = (Counter() for _ in range(4))
    tasks: dict[str, set[bytes]] = collections.defaultdict(set)
    sample, step, passed = [], 1, 0
    for path in sorted(filtered.glob("examples*.jsonl")):
        for line in path.open("rb"):
            example = json.loads(line)
            passed += 1
            if not chosen(name, example):
                continue
            if splits.total() % step == 0:
                sample.append({part: example[part] for part in ("task_type", "query", "positive", "negatives")})
                if len(sample) == 2 * SAMPLE:
                    sample, step = sample[::2], 2 * step
            splits[example["split"]] += 1
            types[example["task_type"]] += 1
            for code in example["languages"]:
                languages[code] += 1 / len(example["languages"])
            tasks[example["task_type"]].add(answers.digest(example["task"]))
            models[example["provenance"]["model"]] += 1
    return Counted(
        name=name,
        passed=passed,
        splits=splits,
        types=types,
        languages=languages,
        tasks=Counter({kind: len(found) for kind, found in tasks.items()}),
        models=models,
        tally=filters.read_tally(filtered),
        sample=sample,
    )


def rejections(tally: Counter) -> dict[str, dict[str, int]]:
    """{reason: {task type: answers}}, the most frequent reason first."""
    found: dict[str, Counter] = collections.defaultdict(Counter)
    for (what, reason), number in tally.items():
        if what.startswith("rejected "):
            found[reason][what.removeprefix("rejected ")] += number
    order = sorted(found, key=lambda reason: (-found[reason].total(), reason))
    return {reason: dict(sorted(found[reason].items())) for reason in order}


def lengths(sample: list[dict], tokenizer: str | None) -> dict[str, dict[str, list[int]]]:
    """{task type: {query, positive, negative: lengths}} in tokens of a tokenizer.json, else in words."""
    measure = _token_counter(tokenizer)
    found = {kind: {part: [] for part in PARTS} for kind in ALL}
    for start in range(0, len(sample), 1_000):
        texts = [
            (example["task_type"], part, text)
            for example in sample[start : start + 1_000]
            for part, texts in zip(
                PARTS, ([example["query"]], [example["positive"]], example["negatives"]), strict=True
            )
            for text in texts
        ]
        for (kind, part, _), length in zip(texts, measure([text for *_, text in texts]), strict=True):
            found[kind][part].append(length)
    return {kind: {part: v for part, v in parts.items() if v} for kind, parts in found.items() if any(parts.values())}


def _token_counter(tokenizer: str | None):
    if tokenizer is None:
        return lambda texts: [len(text.split()) for text in texts]
    from tokenizers import Tokenizer

    try:
        loaded = Tokenizer.from_file(tokenizer)
    except Exception as error:  # the library raises no narrower one
        raise UserError(f"{tokenizer}: not a tokenizer.json: {error}") from error
    loaded.no_truncation()
    loaded.no_padding()
    return lambda texts: [len(row.ids) for row in loaded.encode_batch(texts, add_special_tokens=False)]


def to_json(counted: Counted, measured: dict, unit: str) -> dict:
    """Everything as JSON values."""
    total, tally = counted.splits.total(), counted.tally
    of = lambda what: {name: number for (kind, name), number in sorted(tally.items()) if kind == what}
    dollars = {model: number / 1e9 for model, number in of("nanodollars").items()}
    return {
        "dataset": counted.name,
        "examples": total,
        "splits": dict(counted.splits),
        "types": {kind: counted.types[kind] for kind in ALL if kind in counted.types},
        "languages": dict(sorted(counted.languages.items(), key=lambda item: (-item[1], item[0]))),
        "unique_tasks": {kind: counted.tasks[kind] for kind in ALL if kind in counted.tasks},
        "models": dict(sorted(counted.models.items())),
        "lengths": {
            "unit": unit,
            "measured": len(counted.sample),
            "percentiles": list(PERCENTILES),
            "by_type": {
                kind: {part: [int(v) for v in np.percentile(values, PERCENTILES)] for part, values in parts.items()}
                for kind, parts in measured.items()
            },
        },
        "rejected": rejections(tally),
        "ledger": {"requests": of("requests"), "answers": of("answers"), "tokens": of("tokens"), "dollars": dollars},
    }


def write(folder: Path, counted: Counted, tokenizer: str | None) -> None:
    """statistics.json, the card and the pictures, into the version folder of the dataset."""
    unit = "words" if tokenizer is None else "tokens"
    measured = lengths(counted.sample, tokenizer)
    numbers = to_json(counted, measured, unit)
    pictures = folder / "pictures"
    pictures.mkdir(exist_ok=True)
    files.write_json(folder / "statistics.json", numbers)
    files.write_text(folder / "README.md", card(numbers, "/".join(folder.parts[-3:])))
    paper = {kind: t.share for kind, t in ALL.items()}
    named = lambda shares: {NAMES.get(code, "not asked for"): share for code, share in shares.items()}
    charts.draw_mix(numbers["types"], paper, pictures / "types.png")
    charts.draw_languages(named(numbers["languages"]), named(PAPER), pictures / "languages.png")
    charts.draw_lengths(measured, unit, pictures / "lengths.png")
    if numbers["rejected"]:
        charts.draw_rejections(numbers["rejected"], counted.passed, pictures / "rejections.png")
