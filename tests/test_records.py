"""Every kind of source gives the same records; every mistake is said in words with its place."""

import csv
import json
import os
from pathlib import Path

import pytest

from e5jax.errors import UserError
from e5jax.records import BadRecord, Record, Source, files, read


needs_data = pytest.mark.skipif(
    "E5JAX_DATA" not in os.environ, reason="E5JAX_DATA does not name the folder of real data"
)
DATA = Path(os.environ.get("E5JAX_DATA", "."))
ROW = {"query": "q", "positive": "p"}


def rec(query="q", positive="p", negatives=(), task=None):
    return Record(task=task, query=query, positive=positive, negatives=tuple(negatives))


def jsonl(path, *rows):
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return str(path)


def table(path, *rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return str(path)


def parquet(path, rows):
    import pyarrow
    from pyarrow import parquet

    path.parent.mkdir(exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return str(path)


def squad(path, articles=3, questions=2):
    data = [
        {
            "paragraphs": [
                {
                    "context": f"context {a}",
                    "qas": [{"id": f"{a}-{q}", "question": f"{a}-{q}?"} for q in range(questions)],
                }
            ]
        }
        for a in range(articles)
    ]
    path.write_text(json.dumps({"version": "1.1", "data": data}))
    return str(path)


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory):
    """A real TFDS dataset of 10 records in ArrayRecord files, built without TensorFlow."""
    tfds = pytest.importorskip("tensorflow_datasets")
    text = tfds.features.Text()
    columns = {"task": text, "query": text, "positive": text}

    class Tiny(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = None

        def _info(self):
            negatives = {"negatives": tfds.features.Sequence(text)}
            features = tfds.features.FeaturesDict(columns | negatives)
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i in range(10):
                negatives = [f"n{i}.{j}" for j in range(i % 3)]
                task = "Find." if i % 2 else ""
                row = {"task": task, "query": f"q{i} é", "positive": f"p{i}"}
                yield i, row | {"negatives": negatives}

    folder = tmp_path_factory.mktemp("tfds")
    builder = Tiny(data_dir=str(folder), file_format="array_record")
    builder.download_and_prepare()
    return str(builder.data_dir)


def records(path, **settings):
    return [record for _, record in read(Source(path=str(path), **settings))]


def places(path, **settings):
    return [where for where, _ in read(Source(path=str(path), **settings))]


def reason(path, **settings):
    """What is wrong with the first record, which must be bad."""
    record = records(path, **settings)[0]
    assert isinstance(record, BadRecord), record
    return record.reason


# Formats


def test_jsonl_lines_are_records(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", ROW | {"task": "t", "negatives": ["n", "m"]}, ROW)
    assert records(path) == [rec(negatives="nm", task="t"), rec()]
    assert places(path) == [f"{path}:1", f"{path}:2"]


def test_the_task_of_the_source_is_for_records_that_carry_none(tmp_path):
    rows = [ROW | {"task": "own"}, ROW, ROW | {"task": None}, ROW | {"task": ""}]
    found = records(jsonl(tmp_path / "a.jsonl", *rows), task="mine")
    assert [record.task for record in found] == ["own", "mine", "mine", "mine"]


@pytest.mark.parametrize("query", ["query", "anchor", "question", "sentence1"])
@pytest.mark.parametrize("positive", ["positive", "answer", "passage", "sentence2"])
def test_columns_may_have_the_names_of_sentence_transformers(tmp_path, query, positive):
    assert records(jsonl(tmp_path / "a.jsonl", {query: "q", positive: "p"})) == [rec()]


def test_our_own_column_names_come_first(tmp_path):
    row = {"anchor": "x", "query": "q", "answer": "y", "positive": "p"}
    assert records(jsonl(tmp_path / "a.jsonl", row)) == [rec()]


def test_numbered_negatives_keep_their_order_and_may_be_null(tmp_path):
    row = ROW | {"negative_10": "ten", "negative_2": "two", "negative_1": None, "negative": "one"}
    assert records(jsonl(tmp_path / "a.jsonl", row)) == [rec(negatives=["one", "two", "ten"])]


def test_parquet_with_sentence_transformers_names(tmp_path):
    rows = [{"anchor": f"q{i}", "positive": f"p{i}", "negative": f"n{i}"} for i in range(3)]
    path = parquet(tmp_path / "a.parquet", rows)
    assert records(path) == [rec(f"q{i}", f"p{i}", [f"n{i}"]) for i in range(3)]
    assert places(path)[2] == f"{path}:row 2"


def test_a_folder_of_parquet_files_is_read_in_order_of_names(tmp_path):
    for name in ("b", "a"):
        rows = [{"question": f"{name}{i}", "answer": "p", "negatives": ["n"]} for i in range(2)]
        parquet(tmp_path / "set" / f"{name}.parquet", rows)
    found = records(tmp_path / "set")
    assert [record.query for record in found] == ["a0", "a1", "b0", "b1"]
    assert places(tmp_path / "set")[2] == f"{tmp_path}/set/b.parquet:row 0"


def test_tfds_is_read_without_tensorflow(tfds_folder):
    found = records(tfds_folder, task="mine")
    assert len(found) == 10
    for record in found:
        i = int(record.query[1])
        negatives = [f"n{i}.{j}" for j in range(i % 3)]
        assert record == rec(f"q{i} é", f"p{i}", negatives, "Find." if i % 2 else "mine")


def test_tfds_splits_can_be_sliced(tfds_folder):
    first, rest = (records(tfds_folder, split=f"train[{s}]") for s in (":80%", "80%:"))
    assert [len(first), len(rest)] == [8, 2]
    assert first + rest == records(tfds_folder)


def test_squad_questions_have_their_context_as_positive(tmp_path):
    path = squad(tmp_path / "a.json")
    assert records(path)[:3] == [
        rec("0-0?", "context 0"),
        rec("0-1?", "context 0"),
        rec("1-0?", "context 1"),
    ]
    assert places(path)[2] == f"{path}:question 1-0"


def test_csv_without_header_is_scored_pairs(tmp_path):
    path = table(tmp_path / "a.csv", ["q, 1", 'p "1"', "5.0"], ["q\n2", "p2", "3.2"], ["q3", "p3", 1])
    assert records(path) == [rec("q, 1", 'p "1"'), rec("q\n2", "p2"), rec("q3", "p3")]
    assert places(path) == [f"{path}:1", f"{path}:2", f"{path}:4"]


def test_csv_with_header_may_leave_negatives_empty(tmp_path):
    header = ["positive", "anchor", "negative_1", "negative_2"]
    path = table(tmp_path / "a.csv", header, ["p", "q", "n", "m"], ["p", "q", "n", ""])
    assert records(path) == [rec(negatives="nm"), rec(negatives="n")]
    assert places(path) == [f"{path}:2", f"{path}:3"]


def test_csv_cells_may_be_long(tmp_path):
    path = table(tmp_path / "a.csv", ["query", "positive"], ["q", "p" * 200_000])
    assert records(path) == [rec(positive="p" * 200_000)]


def test_two_aligned_files_are_bitext(tmp_path):
    (tmp_path / "a.en").write_bytes("one \r\ntwo\u2028three\n".encode())
    (tmp_path / "a.de").write_bytes(b"eins\nzwei drei")
    found = records(tmp_path / "a.en", positives=str(tmp_path / "a.de"))
    assert found == [rec("one ", "eins"), rec("two\u2028three", "zwei drei")]


def test_plain_texts_are_their_own_positives_whatever_holds_them(tmp_path, tfds_folder):
    rows = [{"text": text, "title": "left out", "negatives": ["n"], "task": "t"} for text in ("one ", "two\u2028three")]
    expected = [rec(row["text"], row["text"]) for row in rows]
    (tmp_path / "a.txt").write_bytes("one \r\ntwo\u2028three".encode())
    (tmp_path / "wiki").write_bytes("one \ntwo\u2028three\n".encode())
    of_parquet = parquet(tmp_path / "set" / "a.parquet", rows)
    for path in (tmp_path / "a.txt", tmp_path / "wiki", jsonl(tmp_path / "a.jsonl", *rows), of_parquet):
        assert records(path, texts=True) == expected
    assert records(tmp_path / "set", texts=True) == expected
    assert places(tmp_path / "a.txt", texts=True) == [f"{tmp_path}/a.txt:1", f"{tmp_path}/a.txt:2"]
    assert records(tmp_path / "a.txt", texts=True, rows="1:", task="mine") == [
        rec("two\u2028three", "two\u2028three", task="mine")
    ]
    assert reason(tfds_folder, texts=True).startswith("no text; its fields are ")


def test_only_records_with_min_score_are_kept(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", *[{"query": f"{s}", "positive": "p", "score": s} for s in (1, 4.0, 5)])
    assert [record.query for record in records(path, min_score=4)] == ["4.0", "5"]


@pytest.mark.parametrize("rows", [":", "2:", ":3", "2:4", "-2:", ":-1", "-3:-1", "1:-1", "8:"])
def test_rows_are_a_python_slice(tmp_path, rows):
    path = jsonl(tmp_path / "a.jsonl", *[{"query": f"{i}", "positive": "p"} for i in range(10)])
    expected = eval(f"list(range(10))[{rows}]")
    assert [int(record.query) for record in records(path, rows=rows)] == expected


def test_rows_of_squad_are_articles_so_that_no_context_is_on_both_sides(tmp_path):
    path = squad(tmp_path / "a.json", articles=4, questions=3)
    train, held_out = records(path, rows="1:"), records(path, rows=":1")
    assert [len(train), len(held_out)] == [9, 3]
    assert not {r.positive for r in train} & {r.positive for r in held_out}


def test_files_are_those_that_the_records_come_from(tmp_path, tfds_folder):
    parquet(tmp_path / "set" / "b.parquet", [ROW])
    parquet(tmp_path / "set" / "a.parquet", [ROW])
    (tmp_path / "set" / "README.md").write_text("")
    names = [file.name for file in files(Source(path=str(tmp_path / "set")))]
    assert names == ["a.parquet", "b.parquet"]
    names = [file.name for file in files(Source(path=tfds_folder))]
    assert "dataset_info.json" in names
    assert any("array_record" in name for name in names)


def test_unicode_is_kept_as_it_is(tmp_path):
    for text in [
        "e\u0301 \u00e9",
        "👩‍👩‍👧",
        "‏שלום‎",
        "a\x00b",
        "  a\u00a0\n",
        "\ufeffa",
        "ﬁ\u2028Ⅳ",
    ]:
        path = jsonl(tmp_path / "a.jsonl", {"query": text, "positive": text, "negatives": [text]})
        assert records(path) == [rec(text, text, [text])]


def test_a_byte_order_mark_of_the_file_is_no_text(tmp_path):
    (tmp_path / "a.jsonl").write_text('\ufeff{"query": "q", "positive": "p"}', encoding="utf-8")
    assert records(tmp_path / "a.jsonl") == [rec()]


@needs_data
def test_real_files_are_read_whole():
    assert len(records(DATA / "xquad" / "zh.json")) == 1_190
    stsb = records(DATA / "stsb" / "de-train.csv")
    assert len(stsb) == 5_749
    assert not [record for record in stsb if isinstance(record, BadRecord)]
    pair = DATA / "tatoeba"
    found = records(pair / "fra-eng.fra", positives=str(pair / "fra-eng.eng"))
    assert len(found) == 1_000
    with pytest.raises(UserError, match=r"train.csv:1: text, category: neither a header"):
        records(DATA / "banking77" / "train.csv")


# One bad record


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("{'query': 1}", "not JSON: Expecting property name"),
        ("", "blank line"),
        ("  ", "blank line"),
        ('["q", "p"]', "['q', 'p'] is not a JSON object"),
        ("[" * 100_000, "not JSON: maximum recursion"),
        ({"query": "q", "text": "p"}, "no positive or answer or passage or sentence2"),
        ({"query": "q", "text": "p"}, "its fields are query, text"),
        ({}, "its fields are none"),
        ({"query": 3, "positive": "p"}, "query is 3, not a string"),
        ({"query": "q", "positive": None}, "positive is None, not a string"),
        ({"query": "", "positive": "p"}, "query is empty"),
        ({"query": "q", "answer": " \u3000\n"}, "answer is empty"),
        (ROW | {"task": 7}, "task is 7, not a string"),
        (ROW | {"negatives": "n"}, "negatives is 'n', not a list of strings"),
        (ROW | {"negatives": {"a": "n"}}, "not a list of strings"),
        (ROW | {"negatives": ["n", 5]}, "negatives[1] is 5, not a string"),
        (ROW | {"negatives": ["n", ""]}, "negatives[1] is empty"),
        (ROW | {"negative_2": ""}, "negative_2 is empty"),
        ('{"query": "a\\ud83d", "positive": "p"}', "query has a lone surrogate, '\\ud83d', at 1"),
    ],
)
def test_a_bad_record_says_what_is_wrong(tmp_path, row, says):
    path = jsonl(tmp_path / "a.jsonl", row, ROW)
    assert says in reason(path)
    assert records(path)[1] == rec()


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (ROW, "no text; its fields are query, positive"),
        ({}, "no text; its fields are none"),
        ({"text": 3}, "text is 3, not a string"),
        ({"text": " "}, "text is empty"),
    ],
)
def test_a_bad_plain_text_says_what_is_wrong(tmp_path, row, says):
    path = jsonl(tmp_path / "a.jsonl", row, {"text": "t"})
    assert reason(path, texts=True) == says
    assert records(path, texts=True)[1] == rec("t", "t")


def test_an_empty_line_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    assert [type(record) for record in records(tmp_path / "a.txt", texts=True)] == [Record, BadRecord, Record]


def test_only_one_newline_may_end_a_file(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", ROW, "")
    assert [type(record) for record in records(path)] == [Record, BadRecord]


@pytest.mark.parametrize("score", ["high", None, [1]])
def test_a_score_that_is_no_number_is_bad_where_it_is_asked_for(tmp_path, score):
    path = jsonl(tmp_path / "a.jsonl", ROW | {"score": score})
    assert "not a number" in reason(path, min_score=1)
    assert records(path) == [rec()]


def test_a_missing_score_is_bad_where_it_is_asked_for(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", ROW)
    assert reason(path, min_score=1) == "no score for min_score; its fields are query, positive"


def test_a_csv_row_of_another_length_is_bad(tmp_path):
    path = table(tmp_path / "a.csv", ["query", "positive"], ["q", "p", "x"], [], ["q", "p"])
    assert reason(path) == "3 cells for 2 columns: query, positive"
    assert records(path)[2] == rec()


def test_an_empty_csv_cell_is_bad_where_text_must_be(tmp_path):
    assert reason(table(tmp_path / "a.csv", ["query", "positive"], ["q", ""])) == "positive is empty"


def test_bytes_that_are_not_utf8_are_bad(tmp_path):
    path = parquet(tmp_path / "a.parquet", [{"query": b"\xff", "positive": b"p"}])
    assert reason(path) == "query is not UTF-8"


# A source that cannot be read


def refused(says, path, **settings):
    with pytest.raises(UserError, match=says):
        records(path, **settings)


def test_a_missing_file_is_named_with_its_nearest_neighbour(tmp_path):
    jsonl(tmp_path / "train.jsonl", ROW)
    refused(
        r"tain.jsonl: no such file or folder; did you mean .*/train.jsonl\?",
        tmp_path / "tain.jsonl",
    )
    refused(r"/no/a.jsonl: no such file, and no folder .*/no", tmp_path / "no" / "a.jsonl")


def test_a_missing_second_file_is_named(tmp_path):
    (tmp_path / "a.en").write_text("one\n")
    refused("a.de: no such file", tmp_path / "a.en", positives=str(tmp_path / "a.de"))


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_an_empty_file_has_no_records(tmp_path, name):
    (tmp_path / name).write_text("")
    refused(f"{name}: no records", tmp_path / name)


def test_a_slice_or_score_that_leaves_nothing_is_named(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", ROW | {"score": 1})
    refused(r"no records \(rows 5:\)", path, rows="5:")
    refused("no records with a score of at least 2", path, min_score=2)


@pytest.mark.parametrize("name", ["a.tsv", "a.txt", "a"])
def test_an_unknown_suffix_lists_what_can_be_read(tmp_path, name):
    (tmp_path / name).write_text("x")
    refused(r"cannot read files named.*\.jsonl, \.parquet, \.csv, \.json.*`positives`", tmp_path / name)


def test_a_folder_of_something_else_is_refused(tmp_path):
    refused(r"cannot read this folder.*dataset_info.json", tmp_path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.json", "a.txt"])
def test_what_is_not_utf8_is_named_by_line(tmp_path, name):
    (tmp_path / name).write_bytes(b"query,positive\nq,caf\xe9\n")
    refused(
        rf"{name}:2: not UTF-8",
        tmp_path / name,
        positives=str(tmp_path / name) if "txt" in name else None,
    )


def test_files_of_unequal_length_are_no_bitext(tmp_path):
    (tmp_path / "a.en").write_text("one\ntwo\n")
    (tmp_path / "a.de").write_text("eins\n")
    refused(r"a.en: 2 lines, but .*a.de has 1", tmp_path / "a.en", positives=str(tmp_path / "a.de"))


def test_unknown_splits_are_refused_with_the_known_ones(tfds_folder):
    refused(r"split test: Unknown split 'test'.*'train'", tfds_folder, split="test")
    refused(r"split train\[:x\]", tfds_folder, split="train[:x]")


def test_json_that_is_not_squad_is_refused(tmp_path):
    refused(r"not SQuAD v1.1 .*\.jsonl", Path(jsonl(tmp_path / "a.json", [ROW])))
    refused(r"not SQuAD v1.1 \(KeyError\('data'\)\)", Path(jsonl(tmp_path / "a.json", ROW)))
    refused(r"not JSON.*\.jsonl", Path(jsonl(tmp_path / "a.json", ROW, ROW)))


def test_a_csv_that_breaks_off_is_named_by_line(tmp_path):
    (tmp_path / "a.csv").write_text('query,positive\nq,p\n"q,p\n')
    refused("a.csv:3: unexpected end of data", tmp_path / "a.csv")


def test_a_parquet_file_that_is_none_is_named(tmp_path):
    (tmp_path / "a.parquet").write_text("text")
    refused("a.parquet: not readable as Parquet", tmp_path / "a.parquet")


@pytest.mark.parametrize("rows", ["5", "1:2:3", "a:b", "", "1.5:"])
def test_rows_must_be_a_slice(rows):
    with pytest.raises(UserError, match="rows must be start:stop"):
        Source(path="a.jsonl", rows=rows)


@pytest.mark.parametrize("weight", [0, -1.0, float("nan"), float("inf")])
def test_weight_must_be_positive(weight):
    with pytest.raises(UserError, match=r"a.jsonl: weight must be positive"):
        Source(path="a.jsonl", weight=weight)


@pytest.mark.parametrize("name", ["a.csv", "a.json"])
def test_tables_are_no_plain_texts(tmp_path, name):
    (tmp_path / name).write_text("x")
    refused(
        r"cannot read files named.*\.jsonl, \.parquet, a folder.*other files as a text a line",
        tmp_path / name,
        texts=True,
    )


def test_texts_and_positives_exclude_each_other():
    with pytest.raises(UserError, match="give one of them"):
        Source(path="a.en", positives="a.de", texts=True)


def test_a_record_s_type_may_say_its_task(tmp_path):
    rows = [{**ROW, "task": "its own", "task_type": "long-short"}, {**ROW, "task_type": "sts"}, ROW]
    path = jsonl(tmp_path / "a.jsonl", *rows)
    tasks = lambda **options: [record.task for _, record in read(Source(path=path, **options))]
    assert tasks(task_of_type={"long-short": "classify"}) == ["classify", None, None]
    assert tasks(task_of_type={"long-short": "classify"}, task="other") == ["classify", "other", "other"]
    assert tasks() == ["its own", None, None]
