"""Texts with classes become pairs by label or by example; what is no pair says so."""

import collections
import csv
import json
import os
from pathlib import Path

import pytest

from e5jax.errors import UserError
from e5jax.labelled import NEGATIVES
from e5jax.records import BadRecord, Record, Source, read


CLASSES = {
    "lost_card": ["I lost it", "where is my card", "card gone"],
    "rates": ["what rate", "exchange"],
    "pin": ["pin?"],
}
ROWS = [(text, label) for label, texts in CLASSES.items() for text in texts]
CLASS_OF = {text: label for text, label in ROWS}


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "train.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "category"), *ROWS])
    return path


def records(path, **options):
    return [record for _, record in read(Source(path=str(path), **options))]


def test_by_label_a_text_s_passage_is_its_label_and_the_others_are_its_negatives(table):
    found = records(table, labels="text", task="Find the intent")
    assert [(r.query, r.positive, r.task) for r in found] == [(*row, "Find the intent") for row in ROWS]
    assert all({r.positive, *r.negatives} == {*CLASSES} and len(r.negatives) == 2 for r in found)


def test_by_example_a_text_s_passage_is_another_of_its_class_and_its_negatives_are_of_other_classes(table):
    found = records(table, labels="example")
    pairs = [r for r in found if isinstance(r, Record)]
    assert len(pairs) == 5
    for r in pairs:
        assert r.positive != r.query and CLASS_OF[r.positive] == CLASS_OF[r.query]
        of = [CLASS_OF[text] for text in r.negatives]
        assert sorted([*of, CLASS_OF[r.query]]) == sorted(CLASSES)


def test_a_text_alone_in_its_class_is_no_pair_by_example(table):
    (bad,) = [r for r in records(table, labels="example") if isinstance(r, BadRecord)]
    assert bad.reason == "the only text of 'pin': there is no other example of its class"


def test_the_same_rows_give_the_same_pairs(table):
    assert records(table, labels="example") == records(table, labels="example")


def test_every_other_example_of_a_class_is_drawn_as_often(tmp_path):
    path = tmp_path / "train.jsonl"
    rows = [{"text": f"{n}", "label": n % 2} for n in range(2000)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = records(path, labels="example")
    assert all(int(r.query) % 2 == int(r.positive) % 2 != int(r.negatives[0]) % 2 for r in found)
    drawn = collections.Counter(int(r.positive) // 500 for r in found)
    assert all(abs(count - 500) < 90 for count in drawn.values())  # four standard deviations


def test_labels_that_are_numbers_have_their_text_beside_them(tmp_path):
    path = tmp_path / "train.jsonl"
    rows = [
        {"text": "great", "label": 1, "label_text": "positive"},
        {"text": "bad", "label": 0, "label_text": "negative"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [(r.positive, r.negatives) for r in records(path, labels="text")] == [
        ("positive", ("negative",)),
        ("negative", ("positive",)),
    ]


def test_rows_without_text_or_label_stand_in_their_place_and_say_what_is_missing(tmp_path):
    path = tmp_path / "train.jsonl"
    rows = [{"text": "a", "label": "x"}, {"text": "b"}, {"label": "x"}, [1], {"text": "c", "label": "x"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = list(read(Source(path=str(path), labels="example")))
    assert [where.rsplit(":", 1)[1] for where, _ in found] == ["1", "2", "3", "4", "5"]
    assert [type(record) for _, record in found] == [Record, BadRecord, BadRecord, BadRecord, Record]
    assert found[1][1].reason == "no label_text or label or category; its fields are text"
    assert found[2][1].reason == "no text; its fields are label"


def test_a_table_without_a_label_is_refused_by_its_header(tmp_path):
    (tmp_path / "train.csv").write_text("text,mood\nfine,good\n")
    with pytest.raises(UserError, match=r"train\.csv:1: text, mood: no header with text and label_text"):
        records(tmp_path / "train.csv", labels="text")


def test_labels_beside_another_kind_of_passage_are_refused():
    with pytest.raises(UserError, match="give one of them"):
        Source(path="a.csv", labels="text", positives="b.txt")


@pytest.mark.skipif("E5JAX_DATA" not in os.environ, reason="E5JAX_DATA does not name the folder of real data")
def test_banking77_by_example_keeps_its_77_classes_apart():
    path = Path(os.environ["E5JAX_DATA"]) / "banking77" / "train.csv"
    with path.open(encoding="utf-8", newline="") as file:
        class_of = {row["text"]: row["category"] for row in csv.DictReader(file)}
    found = records(path, labels="example")
    assert len(found) == 10_003
    for r in found:
        assert class_of[r.positive] == class_of[r.query]
        assert len(r.negatives) == NEGATIVES and class_of[r.query] not in {class_of[text] for text in r.negatives}
