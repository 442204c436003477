"""Stores hold what the records say."""

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from e5jax import data
from e5jax.errors import UserError
from e5jax.formats import INSTRUCT, PAPER, Prompts, Tokenizer
from e5jax.records import Source
from tests.test_formats import tiny_tokenizer


BAD = "{broken"


def row(i, negatives=1):
    texts = [f"negative {i} {j}" for j in range(negatives)]
    return {"query": f"query {i}", "positive": "positive " * (i % 5 + 1), "negatives": texts}


def write(path, rows):
    lines = (r if isinstance(r, str) else json.dumps(r) for r in rows)
    path.write_text("".join(line + "\n" for line in lines))
    return Source(path=str(path))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer.load(tiny_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture
def prepare(tmp_path, tokenizer):
    def prepare(source, max_length=64, max_negatives=3, on_bad_record="stop"):
        cache = tmp_path / "cache"
        return data.prepare(source, tokenizer, PAPER, max_length, max_negatives, on_bad_record, cache)

    return prepare


@pytest.fixture
def tokenised(monkeypatch):
    """How many texts have been tokenised so far."""
    counts = [0]
    encode_counting = Tokenizer.encode_counting

    def counting(self, texts, max_length):
        counts[0] += len(texts)
        return encode_counting(self, texts, max_length)

    monkeypatch.setattr(Tokenizer, "encode_counting", counting)
    return counts


# Stores


def test_a_store_holds_the_tokens_of_every_record(tmp_path, prepare, tokenizer):
    rows = [row(i, negatives=i % 4) for i in range(2_500)]  # more than two blocks
    rows[7]["task"] = "Find it."
    store = prepare(write(tmp_path / "a.jsonl", rows))
    assert len(store) == 2_500
    for i in [0, 1, 7, 999, 1_000, 2_499]:
        query = PAPER.before_query(rows[i].get("task")) + rows[i]["query"]
        expected = tokenizer.encode([query, rows[i]["positive"], *rows[i]["negatives"]], 64)
        found = store.texts(i)
        assert [t.tolist() for t in found] == [t.tolist() for t in expected]
        assert [length for length, _ in store.describe(i)] == [len(t) for t in expected]
        assert store.where(i) == f"{tmp_path}/a.jsonl:{i + 1}"


def test_lengths_of_any_records_come_at_once(tmp_path, prepare):
    store = prepare(write(tmp_path / "a.jsonl", [row(i, negatives=i % 4) for i in range(50)]))
    some = np.array([3, 3, 49, 0, 20])
    texts = [store.texts(i) for i in some]
    assert store.counts(some).tolist() == [len(t) for t in texts]
    assert store.lengths(some).tolist() == [len(t) for record in texts for t in record]
    assert store.lengths(np.array([], int)).tolist() == []


def test_equal_texts_have_equal_hashes(tmp_path, prepare):
    a, b = (prepare(write(tmp_path / f"{n}.jsonl", [row(i) for i in (0, n)])) for n in (1, 5))
    hashes = [[h for _, h in s.describe(i)] for s in (a, b) for i in (0, 1)]
    assert hashes[0] == hashes[2]
    assert hashes[0][1] == hashes[3][1]  # the positives of rows 0 and 5 are the same
    assert len({h for record in hashes for h in record}) == 8


def test_the_first_negatives_are_kept(tmp_path, prepare, tokenizer):
    source = write(tmp_path / "a.jsonl", [row(0, negatives=5)])
    store = prepare(source, max_negatives=2)
    expected = tokenizer.encode(row(0, negatives=2)["negatives"], 64)
    assert [t.tolist() for t in store.texts(0)[2:]] == [t.tolist() for t in expected]
    assert len(prepare(source, max_negatives=0).texts(0)) == 2


def test_cut_texts_are_counted(tmp_path, prepare):
    rows = [{"query": "q", "positive": "x y z " * n} for n in (1, 50, 100)] * 400
    store = prepare(write(tmp_path / "a.jsonl", rows), max_length=30)
    assert store.truncated == 800
    assert store.lengths(np.arange(3)).max() == 30


def test_the_first_bad_record_stops_with_its_place(tmp_path, prepare):
    source = write(tmp_path / "a.jsonl", [row(0), BAD, "{}"])
    with pytest.raises(UserError, match=r"a.jsonl:2: not JSON.*--data.on-bad-record skip"):
        prepare(source)
    assert not list((tmp_path / "cache").iterdir())


def test_bad_records_are_skipped_counted_and_three_of_them_said(tmp_path, prepare, caplog):
    source = write(tmp_path / "a.jsonl", [row(0), *[BAD] * 4, row(1)])
    with caplog.at_level(logging.WARNING, "e5jax"):
        store = prepare(source, on_bad_record="skip")
    assert (len(store), store.skipped) == (2, 4)
    assert store.where(1) == f"{source.path}:6"
    assert "left out 4 bad records" in caplog.text
    assert [f"a.jsonl:{n}: not JSON" in caplog.text for n in (2, 3, 4, 5)] == [True] * 3 + [False]


def test_nothing_but_bad_records_is_an_error_that_says_what_is_wrong(tmp_path, prepare):
    source = write(tmp_path / "a.jsonl", [{"text": "x"}] * 3)
    with pytest.raises(UserError, match=r"all 3 records are bad.*a.jsonl:1: no query or anchor"):
        prepare(source, on_bad_record="skip")


def test_negative_max_negatives_is_refused(tmp_path, prepare):
    with pytest.raises(UserError, match="max_negatives"):
        prepare(write(tmp_path / "a.jsonl", [row(0)]), max_negatives=-1)


# Cache


def test_a_store_is_made_once(tmp_path, prepare, tokenised):
    source = write(tmp_path / "a.jsonl", [row(i) for i in range(10)])
    first = prepare(source)
    assert tokenised == [30]
    again = prepare(Source(path=source.path, weight=7.0))
    assert tokenised == [30]
    assert (again.digest, again.source.weight) == (first.digest, 7.0)


def test_a_changed_file_makes_a_new_store(tmp_path, prepare, tokenised):
    path = tmp_path / "a.jsonl"
    first = prepare(write(path, [row(0)]))
    os.utime(path, ns=(1, 1))  # the same bytes: another store, with the same digest
    touched = prepare(Source(path=str(path)))
    changed = prepare(write(path, [row(0), row(1)]))
    assert tokenised == [12]
    assert first.digest == touched.digest != changed.digest
    assert len(changed) == 2


@pytest.mark.parametrize("settings", [{"max_length": 32}, {"max_negatives": 1}, {"on_bad_record": "skip"}])
def test_other_settings_make_a_new_store(tmp_path, prepare, tokenised, settings):
    source = write(tmp_path / "a.jsonl", [row(0)])
    prepare(source)
    prepare(source, **settings)
    assert tokenised == [6]


def test_another_tokenizer_template_or_task_makes_a_new_store(tmp_path, prepare, tokenizer, tokenised):
    source = write(tmp_path / "a.jsonl", [row(0)])
    prepare(source)
    other = Tokenizer.load(tiny_tokenizer(tmp_path / "other", post_processor=None))
    data.prepare(source, other, PAPER, 64, 3, "stop", tmp_path / "cache")
    prepare(Source(path=source.path, task="Find it."))
    data.prepare(source, tokenizer, Prompts(query="query: "), 64, 3, "stop", tmp_path / "cache")
    data.prepare(source, tokenizer, Prompts(query=INSTRUCT, passage="passage: "), 64, 3, "stop", tmp_path / "cache")
    assert tokenised == [15]


def test_the_digest_knows_where_texts_begin(tmp_path, prepare):
    three = [{"query": "a", "positive": "b", "negatives": ["c", "d"]}]
    two = [{"query": "a", "positive": "b"}, {"query": "c", "positive": "d"}]
    stores = [prepare(write(tmp_path / f"{i}.jsonl", r)) for i, r in enumerate([three, two])]
    assert stores[0].tokens.tolist() == stores[1].tokens.tolist()
    assert stores[0].digest != stores[1].digest


def test_the_writer_who_comes_second_takes_the_store_of_the_first(tmp_path, prepare, monkeypatch):
    source = write(tmp_path / "a.jsonl", [row(0)])
    encode_counting = Tokenizer.encode_counting

    def overtaken(self, texts, max_length):
        monkeypatch.setattr(Tokenizer, "encode_counting", encode_counting)
        overtaken.first = prepare(source)
        return encode_counting(self, texts, max_length)

    monkeypatch.setattr(Tokenizer, "encode_counting", overtaken)
    second = prepare(source)
    assert second.digest == overtaken.first.digest
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_killed_writer_leaves_nothing_that_is_taken_for_a_store(tmp_path, prepare, tokenizer, tokenised):
    source = write(tmp_path / "a.jsonl", [row(i) for i in range(1_500)])
    tokenizer.save(tmp_path / "tokenizer")
    program = """
import os, pathlib, signal, sys
from e5jax import data, formats, records

def read(source):
    for number, record in enumerate(records_read(source)):
        if number == 1_200:
            os.kill(os.getpid(), signal.SIGKILL)
        yield record

records_read, records.read = records.read, read
tokenizer = formats.Tokenizer.load(pathlib.Path(sys.argv[2]))
source = records.Source(path=sys.argv[1])
data.prepare(source, tokenizer, formats.PAPER, 64, 3, "stop", pathlib.Path(sys.argv[3]))
"""
    arguments = [source.path, str(tmp_path / "tokenizer"), str(tmp_path / "cache")]
    root = Path(data.__file__).parents[1]
    killed = subprocess.run([sys.executable, "-c", program, *arguments], cwd=root, check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = (tmp_path / "cache").iterdir()
    assert (left / "tokens.int32").exists()
    store = prepare(source)
    assert tokenised == [4_500]
    assert store.texts(1_499)
