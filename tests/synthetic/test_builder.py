"""The TFDS dataset: what training reads, the same bytes from the same ledger, no task in both splits, no TensorFlow."""

import hashlib
import json
import sys

import pytest

from e5jax.errors import UserError
from e5jax.records import Source, read
from e5jax.synthetic import dataset, task_types
from tests.synthetic.answered import entry, ledger, mixed


def build(tmp_path, name="all", **changes):
    settings = dict(heldout=0.3, near_duplicates=0.8, check_language=False, max_characters=2_000, decontaminate=())
    settings |= dict(prompt_versions=(), beam_runner=None, processes=1, tokenizer=None, tell=lambda said: None)
    return dataset.build(tmp_path / "ledger", tmp_path / "data", name=name, **(settings | changes))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("built")
    ledger(folder / "ledger", mixed(120))
    return folder, build(folder)


def kept(folder):
    return [json.loads(line) for line in (folder / "filtered" / "examples.jsonl").open()]


def rows(folder, split):
    import tensorflow_datasets as tfds

    return list(tfds.builder_from_directory(folder).as_data_source(split))


def sums(folder):
    return dict(reversed(line.split("  ")) for line in (folder / "SHA256SUMS").read_text().splitlines())


def test_training_reads_every_example_as_the_filters_left_it(built):
    folder, version = built
    found = [record for split in ("train", "heldout") for _, record in read(Source(path=str(version), split=split))]
    plain = lambda rows: sorted((r["task"], r["query"], r["positive"], *r["negatives"]) for r in rows)
    assert plain([vars(record) for record in found]) == plain(kept(folder))
    assert len(found) > 100


def test_an_example_keeps_its_type_languages_and_provenance(built):
    folder, version = built
    wanted = {row["key"]: row for row in kept(folder)}
    for row in rows(version, "train"):
        provenance = {name: value.decode() for name, value in row["provenance"].items()}
        example = wanted[provenance.pop("key")]
        assert provenance == example["provenance"]
        assert row["task_type"].decode() == example["task_type"]
        assert [code.decode() for code in row["languages"]] == example["languages"]


def test_no_task_is_in_both_splits_and_symmetric_types_are_for_training(built):
    train, heldout = ({row["task"].decode() for row in rows(built[1], split)} for split in ("train", "heldout"))
    assert heldout and not train & heldout
    assert {task_types.TYPES[name].task for name in ("sts", "bitext")} <= train


def test_the_same_ledger_makes_the_same_bytes(built, tmp_path):
    ledger(tmp_path / "ledger", mixed(120))
    assert sums(build(tmp_path)) == sums(built[1])


def test_a_ledger_that_grew_replaces_the_dataset(tmp_path):
    for count in (3, 5):
        ledger(tmp_path / "ledger", [entry(i) for i in range(count)])
        assert len(rows(build(tmp_path, heldout=0.0), "train")) == count


def test_the_order_of_examples_is_that_of_no_type(built):
    kinds = [row["task_type"].decode() for row in rows(built[1], "train")]
    assert len(set(kinds[:30])) == len(set(kinds))


def test_every_file_has_its_checksum(built):
    folder = built[1]
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {"SHA256SUMS"}
    assert sums(folder) == {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    assert {"README.md", "statistics.json", "dataset_info.json", "pictures/types.png"} <= names


def test_a_type_alone_and_english_alone_are_datasets_too(tmp_path):
    german = [entry(i, "sts", language="de") for i in range(3)]
    ledger(tmp_path / "ledger", [*german, *(entry(i, "long-short") for i in range(5)), entry(9, "bitext")])
    found = {name: rows(build(tmp_path, name, heldout=0.0), "train") for name in ("all", "english", "sts")}
    assert {name: len(examples) for name, examples in found.items()} == {"all": 9, "english": 5, "sts": 3}


def test_shards_hold_a_bounded_number_of_examples(tmp_path, monkeypatch):
    from e5jax.synthetic.synthetic_text_embeddings import synthetic_text_embeddings_dataset_builder as module

    monkeypatch.setattr(module, "SHARD", 4)
    ledger(tmp_path / "ledger", [entry(i) for i in range(10)])
    folder = build(tmp_path, heldout=0.0)
    assert len(list(folder.glob("*.array_record-*"))) == 3
    assert len(rows(folder, "train")) == 10


def test_a_dataset_without_examples_says_what_became_of_the_answers(tmp_path):
    ledger(tmp_path / "ledger", [entry(i, finish_reason="safety") for i in range(3)])
    with pytest.raises(UserError, match=r"no example is left to train on \(0 examples; rejected: 3 ended by safety\)"):
        build(tmp_path)


def test_an_unknown_dataset_names_the_known_ones(tmp_path):
    with pytest.raises(UserError, match=r"no dataset named 'german'; there are all, english, short-long"):
        build(tmp_path, "german")


def test_tensorflow_is_not_needed(built):
    assert "tensorflow" not in sys.modules or not hasattr(sys.modules["tensorflow"], "data")
