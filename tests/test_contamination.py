"""Evaluation queries that stand in training data are found, case and spacing aside, and named by file and line."""

import json
import subprocess
import sys

import pytest

from e5jax import contamination, records
from e5jax.contamination import ContaminationConfig, check, main
from e5jax.errors import UserError
from e5jax.records import Source


ASKED = "Which rivers flow into the North Sea?"
TOLD = "Who is the youngest player of the league"
OTHER = "Give me all the books by that author"


def jsonl(path, *rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def run(tmp_path, **settings):
    report = check(ContaminationConfig(output=str(tmp_path / "report.json"), **settings))
    assert report == json.loads((tmp_path / "report.json").read_text())
    return report


@pytest.fixture
def train(tmp_path):
    return jsonl(
        tmp_path / "trivia.jsonl",
        {"query": "which rivers  flow into the north sea ?", "positive": "The Rhine."},
        {"query": "why does bread rise when it is baked", "positive": TOLD.upper(), "negatives": ["n"]},
        {"task": "t", "query": "how do bees find their way home", "positive": "By the sun."},
        {"query": ASKED, "positive": ASKED, "negatives": [OTHER]},
    )


@pytest.fixture
def queries(tmp_path):
    (tmp_path / "dbpedia").mkdir()
    rows = [{"_id": str(i), "text": text} for i, text in enumerate([ASKED, TOLD, OTHER, "what is it"])]
    return jsonl(tmp_path / "dbpedia" / "queries.jsonl", *rows)


def test_queries_are_found_on_both_sides_of_a_record_case_and_spacing_aside(tmp_path, train, queries, capsys):
    report = run(tmp_path, train=(train,), evaluation=(queries,))
    (one,) = report["evaluation"]
    assert (one["set"], one["queries"], one["found"]) == (queries, 3, 2)  # "what is it" is anybody's
    (source,) = one["sources"]
    assert (source["source"], source["found"], source["queries"], source["positives"]) == (train, 2, 2, 2)
    assert source["first"][:2] == [
        f"{train}:1: query: which rivers  flow into the north sea ?",
        f"{train}:2: positive: {TOLD.upper()}",
    ]
    assert report["train"] == [{"source": train, "records": 4, "matching": 3}]
    assert f"| {queries} | 3 | 2 | {train} | 2 | 2 |" in capsys.readouterr().out


def test_a_text_that_is_a_hard_negative_or_a_part_of_another_is_no_match(tmp_path, queries):
    rows = [{"query": f"Say: {ASKED}", "positive": f"{TOLD} is unknown.", "negatives": [OTHER]}]
    report = run(tmp_path, train=(jsonl(tmp_path / "a.jsonl", *rows),), evaluation=(queries,))
    assert (report["evaluation"][0]["found"], report["evaluation"][0]["sources"]) == (0, [])


def test_every_set_is_compared_with_every_source_whatever_its_kind(tmp_path, train, queries):
    table = tmp_path / "pairs.csv"
    table.write_text(f'query,positive\n"{OTHER}",x\n')
    texts = tmp_path / "held.txt"
    texts.write_text("how do bees find their way home\n")
    report = run(tmp_path, train=(train, str(table)), evaluation=(queries, str(texts)))
    found = {one["set"]: {s["source"]: s["found"] for s in one["sources"]} for one in report["evaluation"]}
    assert found == {queries: {train: 2, str(table): 1}, str(texts): {train: 1}}
    assert [one["found"] for one in report["evaluation"]] == [3, 1]


def test_local_tasks_are_asked_for_by_name(tmp_path, train, monkeypatch):
    folder = tmp_path / "data" / "stsb"
    folder.mkdir(parents=True)
    (folder / "en-test.csv").write_text(f'sentence1,sentence2,score\n"{OTHER}","{TOLD}",3.0\n')
    monkeypatch.setenv("E5JAX_DATA", str(tmp_path / "data"))
    (one,) = run(tmp_path, train=(train,), tasks=("stsb-en",))["evaluation"]
    assert (one["set"], one["queries"], one["found"]) == ("stsb-en", 2, 1)
    with pytest.raises(UserError, match=r"no task 'stsb-de' in .*did you mean stsb-en"):
        run(tmp_path, train=(train,), tasks=("stsb-de",))
    monkeypatch.delenv("E5JAX_DATA")
    with pytest.raises(UserError, match=r"E5JAX_DATA or --data-dir"):
        run(tmp_path, train=(train,), tasks=("stsb-en",))


def test_clean_sources_are_what_did_not_match_and_are_never_written_over(tmp_path, train, queries):
    settings = dict(train=(train,), evaluation=(queries,), write_clean=str(tmp_path / "clean"))
    run(tmp_path, **settings)
    before = [record for _, record in records.read(Source(path=train))]
    assert [record for _, record in records.read(Source(path=str(tmp_path / "clean" / "trivia.jsonl")))] == before[2:3]
    assert run(tmp_path, **settings | {"train": (str(tmp_path / "clean" / "trivia.jsonl"),), "write_clean": None})[
        "train"
    ][0] == {"source": str(tmp_path / "clean" / "trivia.jsonl"), "records": 1, "matching": 0}
    with pytest.raises(UserError, match=r"clean/trivia.jsonl is there already"):
        run(tmp_path, **settings)
    twin = tmp_path / "b" / "trivia.jsonl"
    twin.parent.mkdir()
    twin.write_bytes((tmp_path / "trivia.jsonl").read_bytes())
    with pytest.raises(UserError, match="two sources would both become one file"):
        run(tmp_path, **settings | {"train": (train, str(twin)), "write_clean": str(tmp_path / "other")})


def test_no_more_places_are_named_than_a_few(tmp_path, queries):
    path = jsonl(tmp_path / "a.jsonl", *[{"query": ASKED, "positive": "p"}] * 50)
    (source,) = run(tmp_path, train=(path,), evaluation=(queries,))["evaluation"][0]["sources"]
    assert (len(source["first"]), source["queries"], source["found"]) == (contamination.FIRST, 50, 1)


def test_mistakes_are_said_with_their_place(tmp_path, train, queries):
    bad = jsonl(tmp_path / "bad.jsonl", {"query": "q"})
    with pytest.raises(UserError, match=r"bad.jsonl:1: no positive"):
        run(tmp_path, train=(bad,), evaluation=(queries,))
    (tmp_path / "dbpedia" / "queries.jsonl").write_text('{"_id": "1"}\n')
    with pytest.raises(UserError, match=r"queries.jsonl:1: not a query with _id and text"):
        run(tmp_path, train=(train,), evaluation=(queries,))
    (tmp_path / "short.txt").write_text("too short\n")
    with pytest.raises(UserError, match=r"short.txt: no text of at least 24 bytes"):
        run(tmp_path, train=(train,), evaluation=(str(tmp_path / "short.txt"),))
    with pytest.raises(UserError, match=r"a.md: cannot read evaluation texts"):
        (tmp_path / "a.md").write_text("x")
        run(tmp_path, train=(train,), evaluation=(str(tmp_path / "a.md"),))


def test_the_command_ends_with_0_found_or_not_and_with_2_for_a_wrong_word(tmp_path, train, queries, capsys):
    argv = ["--train", train, "--output", str(tmp_path / "report.json")]
    assert main([*argv, "--evaluation", queries]) == 0
    assert main([*argv, "--evaluation", str(tmp_path / "gone.jsonl")]) == 2
    with pytest.raises(SystemExit, match="2"):
        main(argv)
    assert "--evaluation FILE" in capsys.readouterr().err


def test_what_the_check_shares_with_the_synthetic_data_needs_no_jax():
    program = "import sys, e5jax.synthetic.contamination; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
