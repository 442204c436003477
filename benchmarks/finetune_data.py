"""What both trainers of benchmarks/finetune.py read, and what neither of them has read.

FOLDER/batches.jsonl   a record a line, `batch_size` of them a step, in the order of e5jax's run
FOLDER/heldout/        local tasks of `e5jax.evaluate`:
    stsb/XX-test.csv           the test part as it is
    xquad-XX/                  the questions of articles that no language trained on, against all passages (BEIR's form)
    tatoeba/XXX-eng.*          the held-out pairs, less those whose English sentence another language's training
                               pairs hold (fra's and jpn's are half of them)
"""

import dataclasses
import itertools
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from configs.minilm_multilingual import HELDOUT_ARTICLES, HELDOUT_PAIRS, STSB, TATOEBA, TRAINED_PAIRS, XQUAD
from e5jax.batch import TrainData
from e5jax.errors import UserError
from e5jax.records import Record, Source, read


TASKS = {
    "STS-B, Spearman": tuple(f"stsb-{language}" for language in STSB),
    "XQuAD, nDCG@10": tuple(f"xquad-{language}" for language in XQUAD),
    "Tatoeba, F1": tuple(f"tatoeba-{language}" for language in TATOEBA),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Order:
    """What is known of the batches in batches.jsonl."""

    tokens: tuple[int, ...]
    """Tokens of each step's texts, special ones included, a text that stands twice counted twice."""
    shared: float
    """Share of the records whose positive is another record's of the same batch, too."""
    truncated: int
    """Texts of the training data that are cut."""


def write_batches(train_data: TrainData, steps: int, path: Path) -> Order:
    """The records of the steps as {"source": number, "query", "positive"}, in order, as the files spell them.

    Raises UserError for records with hard negatives: a batch of the peer wants as many for every record.
    """
    if train_data.max_negatives:
        raise UserError("the peer's batches are pairs: max_negatives must be 0")
    records = [list(good(store.source)) for store in train_data.stores]
    tokens, rows, shared = [], 0, 0
    with path.open("w", encoding="utf-8") as file:
        for step in range(steps):
            batch = train_data.examples[step].tolist()
            texts = [train_data.stores[source].describe(record) for source, record in batch]
            tokens.append(sum(length for text in texts for length, _ in text))
            positives = [text[1][1] for text in texts]
            shared += sum(positives.count(positive) > 1 for positive in positives)
            rows += len(batch)
            for source, number in batch:
                record = records[source][number]
                row = {"source": source, "query": record.query, "positive": record.positive}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    truncated = sum(store.truncated for store in train_data.stores)
    return Order(tokens=tuple(tokens), shared=shared / rows, truncated=truncated)


def good(source: Source) -> Iterator[Record]:
    """The records of a source that are any, in file order: those of its token store."""
    return (record for _, record in read(source) if isinstance(record, Record))


def heldout(folder: Path) -> Path:
    """The folder of held-out tasks in `folder`, made of $E5JAX_DATA where it is not there yet."""
    tasks = folder / "heldout"
    if not tasks.exists():
        aside = folder / "heldout.partial"
        shutil.rmtree(aside, ignore_errors=True)
        write_heldout(Path(os.environ["E5JAX_DATA"]), aside)
        aside.rename(tasks)
    return tasks


def write_heldout(data: Path, folder: Path) -> None:
    """The held-out tasks of $E5JAX_DATA in `folder`, which must be new."""
    (folder / "stsb").mkdir(parents=True)
    for language in STSB:
        shutil.copy(data / "stsb" / f"{language}-test.csv", folder / "stsb")
    for language in XQUAD:
        path = str(data / "xquad" / f"{language}.json")
        every, asked = good(Source(path=path)), good(Source(path=path, rows=HELDOUT_ARTICLES))
        _write_search(folder / f"xquad-{language}", [record.positive for record in every], list(asked))
    pairs = {language: data / "tatoeba" / f"{language}-eng.{language}" for language in TATOEBA}
    part = lambda path, rows: list(good(Source(path=str(path), positives=str(path.with_suffix(".eng")), rows=rows)))
    trained = {record.positive for path in pairs.values() for record in part(path, TRAINED_PAIRS)}
    (folder / "tatoeba").mkdir()
    for path in pairs.values():
        kept = [record for record in part(path, HELDOUT_PAIRS) if record.positive not in trained]
        _write_lines(folder / "tatoeba" / path.name, [record.query for record in kept])
        _write_lines(folder / "tatoeba" / path.with_suffix(".eng").name, [record.positive for record in kept])


def _write_search(folder: Path, passages: Sequence[str], asked: Sequence[Record]) -> None:
    numbers = {passage: f"p{number}" for number, passage in enumerate(dict.fromkeys(passages))}
    (folder / "qrels").mkdir(parents=True)
    rows = lambda texts: [json.dumps({"_id": id_, "text": text}, ensure_ascii=False) for id_, text in texts]
    _write_lines(folder / "corpus.jsonl", rows((id_, text) for text, id_ in numbers.items()))
    _write_lines(folder / "queries.jsonl", rows((f"q{n}", record.query) for n, record in enumerate(asked)))
    judged = [f"q{n}\t{numbers[record.positive]}\t1" for n, record in enumerate(asked)]
    _write_lines(folder / "qrels" / "test.tsv", itertools.chain(["query-id\tcorpus-id\tscore"], judged))


def _write_lines(path: Path, lines) -> None:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8", newline="\n")
