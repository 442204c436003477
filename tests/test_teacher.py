"""A teacher's vectors stand row by row beside a store's texts, are made once, and survive whoever is killed."""

import dataclasses
import itertools
import json
import os
import zlib

import numpy as np
import pytest

from e5jax import data, teacher
from e5jax.errors import UserError
from e5jax.formats import Prompts, Tokenizer
from e5jax.records import Source
from tests.test_formats import tiny_tokenizer


WIDTH = 6
BARE = Prompts(query=None)
READ = Prompts(query="")  # by the student: no task
BAD = "{broken"


def vector(text):
    """Any text's own unit vector."""
    x = np.random.default_rng(zlib.crc32(text.encode())).normal(size=WIDTH)
    return (x / np.linalg.norm(x)).astype(np.float32)


@dataclasses.dataclass(kw_only=True)
class Stub:
    """A teacher that writes down what it was asked for; the call after `calls_left` kills it."""

    digest: str = "one"
    max_length: int | None = 32
    prompts: Prompts = BARE
    calls: list[list[str]] = dataclasses.field(default_factory=list)
    calls_left: float = np.inf

    def encode(self, texts):
        if len(self.calls) >= self.calls_left:
            raise KeyboardInterrupt
        self.calls.append(list(texts))
        return np.array([vector(text) for text in texts])


def rows(count, **changes):
    """Records with none to three negatives."""
    negatives = [[f"negative {i} {j}" for j in range(i % 4)] for i in range(count)]
    return [{"query": f"query {i}", "positive": f"positive {i}", "negatives": negatives[i]} for i in range(count)]


def write(path, rows):
    lines = (r if isinstance(r, str) else json.dumps(r) for r in rows)
    path.write_text("".join(line + "\n" for line in lines))
    return Source(path=str(path))


def texts_of(rows, before_query="", before_passage="", max_negatives=3):
    """What a teacher should read, in a store's order."""
    for row in rows:
        yield before_query + row["query"]
        yield from (before_passage + text for text in (row["positive"], *row.get("negatives", [])[:max_negatives]))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer.load(tiny_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture
def prepare(tmp_path, tokenizer):
    """-> vectors of a source's store by a stub"""

    def prepare(source, stub, prompts=BARE, max_negatives=3, on_bad_record="stop"):
        cache = tmp_path / "cache"
        store = data.prepare(source, tokenizer, READ, 16, max_negatives, on_bad_record, cache)
        vectors = teacher.prepare(stub, "stub", source, store, prompts, max_negatives, on_bad_record, cache)
        assert len(vectors) == len(store.text_starts) - 1
        return vectors

    return prepare


def check(vectors, texts):
    assert vectors.dtype == np.float16
    np.testing.assert_allclose(vectors, [vector(text) for text in texts], atol=1e-3)


# Alignment


def test_row_by_row_the_vectors_are_those_of_the_store_s_texts(tmp_path, prepare, monkeypatch):
    monkeypatch.setattr(teacher, "BLOCK", 16)  # records of two to five texts do not end where blocks do
    some = rows(50)
    check(prepare(write(tmp_path / "a.jsonl", some), Stub()), texts_of(some))


def test_negatives_that_the_store_leaves_out_are_left_out(tmp_path, prepare):
    some = rows(8)
    check(prepare(write(tmp_path / "a.jsonl", some), Stub(), max_negatives=1), texts_of(some, max_negatives=1))


def test_bad_records_that_the_store_leaves_out_are_left_out(tmp_path, prepare):
    some = rows(8)
    source = write(tmp_path / "a.jsonl", [BAD, *some[:3], BAD, {"query": "only"}, *some[3:]])
    check(prepare(source, Stub(), on_bad_record="skip"), texts_of(some))


def test_a_row_is_found_by_the_store_s_own_record_starts(tmp_path, prepare, tokenizer):
    some = rows(9)
    source = write(tmp_path / "a.jsonl", some)
    vectors = prepare(source, Stub())
    store = data.prepare(source, tokenizer, READ, 16, 3, "stop", tmp_path / "cache")
    first, last = store.record_starts[7:9]
    check(vectors[first:last], texts_of(some[7:8]))


# Prompts


def test_queries_and_passages_read_what_the_prompts_ask_for(tmp_path, prepare):
    some = rows(5)
    source = dataclasses.replace(write(tmp_path / "a.jsonl", some), task="Find it.")
    e5 = Prompts(query="query: ", passage="passage: ")
    check(prepare(source, Stub(), e5), texts_of(some, "query: ", "passage: "))
    instructed = Prompts(query="Instruct: {task}\nQuery: ")
    check(prepare(source, Stub(), instructed), texts_of(some, "Instruct: Find it.\nQuery: "))


def test_a_record_s_own_task_goes_before_its_source_s(tmp_path, prepare):
    some = [{"query": "a", "positive": "b", "task": "Mine."}, {"query": "c", "positive": "d"}]
    source = dataclasses.replace(write(tmp_path / "a.jsonl", some), task="Theirs.")
    check(prepare(source, Stub(), Prompts(query="{task} ")), ["Mine. a", "b", "Theirs. c", "d"])


def test_a_teacher_that_asks_for_nothing_reads_no_instruction(tmp_path, prepare):
    some = rows(5)
    source = dataclasses.replace(write(tmp_path / "a.jsonl", some), task="Find it.")
    check(prepare(source, Stub()), texts_of(some))


# Work


def test_each_different_text_is_encoded_once_a_block(tmp_path, prepare):
    shared = [{"query": f"query {i % 2}", "positive": "same", "negatives": ["same", f"other {i}"]} for i in range(6)]
    stub = Stub()
    check(prepare(write(tmp_path / "a.jsonl", shared), stub), texts_of(shared))
    assert [sorted(call) for call in stub.calls] == [sorted(set(texts_of(shared)))]


def test_blocks_are_as_many_whole_records_as_fit(tmp_path, prepare, monkeypatch):
    monkeypatch.setattr(teacher, "BLOCK", 20)
    stub, some = Stub(), rows(100)
    prepare(write(tmp_path / "a.jsonl", some), stub)
    assert [*itertools.chain(*stub.calls)] == [*texts_of(some)]
    assert all(15 < len(call) <= 20 for call in stub.calls[:-1])
    assert all(call[0].startswith("query") for call in stub.calls)


def test_a_record_that_is_more_than_a_block_is_a_block(tmp_path, prepare, monkeypatch):
    monkeypatch.setattr(teacher, "BLOCK", 1)
    some = rows(6)
    check(prepare(write(tmp_path / "a.jsonl", some), Stub()), texts_of(some))


def test_a_second_time_nothing_is_encoded(tmp_path, prepare):
    source, stub = write(tmp_path / "a.jsonl", rows(5)), Stub()
    first = prepare(source, stub)
    np.testing.assert_array_equal(prepare(source, Stub(calls_left=0)), first)
    (folder,) = (tmp_path / "cache").glob("teacher-*")
    assert [file.name for file in folder.iterdir()] == ["vectors.npy"]
    heavier = dataclasses.replace(source, weight=2.0)
    np.testing.assert_array_equal(prepare(heavier, Stub(calls_left=0)), first)


def test_whoever_is_stopped_goes_on_behind_the_finished_blocks(tmp_path, prepare, monkeypatch):
    monkeypatch.setattr(teacher, "BLOCK", 16)
    some = rows(50)
    source = write(tmp_path / "a.jsonl", some)
    stopped, again = Stub(calls_left=4), Stub()
    with pytest.raises(KeyboardInterrupt):
        prepare(source, stopped)
    check(prepare(source, again), texts_of(some))
    assert [*itertools.chain(*stopped.calls, *again.calls)] == [*texts_of(some)]


def test_blocks_of_another_size_are_not_gone_on_with(tmp_path, prepare, monkeypatch):
    some = rows(50)
    source = write(tmp_path / "a.jsonl", some)
    for size, stub in ((16, Stub(calls_left=4)), (25, Stub())):
        monkeypatch.setattr(teacher, "BLOCK", size)
        if stub.calls_left == 4:
            with pytest.raises(KeyboardInterrupt):
                prepare(source, stub)
    check(prepare(source, stub), texts_of(some))


def test_two_that_make_the_same_vectors_at_once_do_not_disturb_each_other(tmp_path, prepare, monkeypatch):
    monkeypatch.setattr(teacher, "BLOCK", 16)
    some = rows(50)
    source = write(tmp_path / "a.jsonl", some)

    class Slower(Stub):
        def encode(self, texts):
            if len(self.calls) == 2:  # meanwhile another process does it all and tidies up
                check(prepare(source, Stub()), texts_of(some))
            return super().encode(texts)

    check(prepare(source, Slower()), texts_of(some))


CHANGES = {
    "teacher": lambda source, stub: {"stub": dataclasses.replace(stub, digest="two")},
    "length": lambda source, stub: {"stub": dataclasses.replace(stub, max_length=64)},
    "prompts": lambda source, stub: {"prompts": Prompts(query="q: ")},
    "task": lambda source, stub: {"source": dataclasses.replace(source, task="Another.")},
    "negatives": lambda source, stub: {"max_negatives": 1},
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_vectors_are_made_anew(tmp_path, prepare, change):
    source = write(tmp_path / "a.jsonl", rows(5))
    asked = {"source": source, "stub": Stub(), "prompts": Prompts(query="{task} "), "max_negatives": 3}
    prepare(**asked)
    asked["stub"].calls.clear()
    changed = asked | CHANGES[change](source, Stub())
    prepare(**changed)
    assert changed["stub"].calls


def test_what_the_store_cuts_off_still_tells_files_apart(tmp_path, prepare):
    long = lambda end: [{"query": "a " * 50 + end, "positive": "b"}]
    path = tmp_path / "a.jsonl"
    prepare(write(path, long("one")), Stub())
    source = write(path, long("two"))
    os.utime(path, (1, 1))
    check(prepare(source, Stub()), texts_of(long("two")))


def test_a_task_that_the_student_does_not_read_changes_the_teacher_s_vectors(tmp_path, tokenizer):
    source = write(tmp_path / "a.jsonl", rows(5))
    store = data.prepare(source, tokenizer, READ, 16, 3, "stop", tmp_path)
    for task in ("One.", "Two."):
        told = dataclasses.replace(source, task=task)
        vectors = teacher.prepare(Stub(), "stub", told, store, Prompts(query="{task} "), 3, "stop", tmp_path)
        check(vectors, texts_of(rows(5), f"{task} "))


# What is refused


@pytest.mark.parametrize("count", [4, 6])
def test_a_source_that_is_not_the_store_s_is_refused(tmp_path, tokenizer, count):
    cache, source = tmp_path / "cache", write(tmp_path / "a.jsonl", rows(5))
    store = data.prepare(source, tokenizer, READ, 16, 3, "stop", cache)
    write(tmp_path / "a.jsonl", rows(count))
    with pytest.raises(UserError, match=r"a\.jsonl is not what it was"):
        teacher.prepare(Stub(), "stub", source, store, BARE, 3, "stop", cache)
    assert not list(cache.glob("teacher-*/vectors.npy"))


def test_vectors_that_are_not_finite_are_refused_with_the_text(tmp_path, prepare):
    class Broken(Stub):
        def encode(self, texts):
            return np.where(np.array(texts)[:, None] == "positive 3", np.nan, super().encode(texts))

    with pytest.raises(UserError, match="stub: its vector of 'positive 3' holds NaN"):
        prepare(write(tmp_path / "a.jsonl", rows(5)), Broken())


# Projection


def low_rank(count, rank, dims, seed=0):
    """Unit vectors that lie in a subspace, and a little beside it."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, rank)) @ rng.normal(size=(rank, dims)) + 0.01 * rng.normal(size=(count, dims))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16)


def cosines(x):
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    return x @ x.T


def test_a_projection_keeps_cosines_as_well_as_any_linear_map_can():
    x = low_rank(300, 4, 16)
    basis = teacher.projection(x, 4)
    assert basis.shape == (16, 4) and basis.dtype == np.float32
    np.testing.assert_allclose(basis.T @ basis, np.eye(4), atol=1e-5)
    np.testing.assert_allclose(cosines(x @ basis), cosines(x.astype(np.float32)), atol=2e-3)
    x = np.random.default_rng(0).normal(size=(200, 16)) + 1  # a mean to keep, no subspace to find
    _, values, right = np.linalg.svd(x, full_matrices=False)
    basis = teacher.projection(x, 5)
    projected = x @ basis @ basis.T
    np.testing.assert_allclose(np.square(x - projected).sum(), np.square(values[5:]).sum(), rtol=1e-5)
    np.testing.assert_allclose(np.abs(np.sum(right[:5] * basis.T, axis=1)), 1, atol=1e-4)  # largest first


@pytest.mark.parametrize("dims", [16, 20])
def test_a_wider_student_s_projection_keeps_every_component(dims):
    x = low_rank(30, 4, 16)
    projected = x @ teacher.projection(x, dims)
    np.testing.assert_array_equal(projected, np.pad(x.astype(np.float32), ((0, 0), (0, dims - 16))))


def test_the_signs_of_a_projection_do_not_depend_on_chance():
    x = low_rank(300, 8, 16)
    basis = teacher.projection(x, 6)
    assert (basis[np.abs(basis).argmax(axis=0), np.arange(6)] > 0).all()
    np.testing.assert_allclose(teacher.projection(np.concatenate([x, x]), 6), basis, atol=1e-3)


@pytest.mark.parametrize("texts_a_record", [2, 3])
def test_the_sample_of_a_projection_meets_every_kind_of_text_in_every_part_of_the_data(monkeypatch, texts_a_record):
    monkeypatch.setattr(teacher, "SAMPLE", 2_000)
    x = np.zeros((texts_a_record * 2_000, 4 * texts_a_record + 1))
    part = np.arange(len(x)) * 4 // len(x)
    x[np.arange(len(x)), 4 * (np.arange(len(x)) % texts_a_record) + part] = 1
    basis = teacher.projection(x, 4 * texts_a_record)
    np.testing.assert_allclose(np.linalg.norm(x @ basis, axis=1), 1, atol=1e-5)
