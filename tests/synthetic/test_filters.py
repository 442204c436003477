"""What an answer must be to become an example, and that nothing else decides: no order of lines, no process."""

import json
import random
import subprocess
import sys

import pytest

from e5jax.errors import UserError
from e5jax.synthetic import answers, contamination, filters, task_types, written_in
from e5jax.synthetic.answers import Example, Rejected
from tests.synthetic.answered import entry, ledger, mixed, rules, sentence


GOOD = {"user_query": "cold bread", "positive_document": "Bread is kept dry.", "hard_negative_document": "Wine is."}
GERMAN = "Der Zug nach Hamburg fährt heute wegen eines Schadens an der Strecke erst am späten Abend."
ENGLISH = "The train to Hamburg leaves late this evening because part of the line has been damaged."


def judge(**changes):
    found = answers.example(entry(0, **changes), rules())
    return found if isinstance(found, Example) else found.reason


def rows(folder, name):
    return [json.loads(line) for line in (folder / f"{name}.jsonl").open(encoding="utf-8")]


def run(tmp_path, *segments, near=0.8, processes=1, **changes):
    filters.run(ledger(tmp_path / "ledger", *segments), tmp_path / "filtered", rules(**changes), near, processes)
    return rows(tmp_path / "filtered", "examples"), rows(tmp_path / "filtered", "rejected")


def test_an_answer_becomes_an_example_that_says_where_it_comes_from():
    found = judge(fields=GOOD)
    assert (found.task, found.query, found.positive) == (
        "Find documents on a topic.",
        "cold bread",
        "Bread is kept dry.",
    )
    assert (found.negatives, found.languages, found.number) == (("Wine is.",), ("en",), 0)
    version = task_types.TYPES["short-long"].version
    said = {"model": "m-1", "model_version": "m-1-001", "prompt_version": version, "response_id": "r0"}
    assert found.provenance == {**said, "client": "gemini", "time": "1.5"}


@pytest.mark.parametrize("kind", list(task_types.TYPES))
def test_every_type_has_its_keys_and_its_task(kind):
    found = judge(kind=kind)
    assert found.task == (task_types.TYPES[kind].task or "Find documents on a topic.")
    assert found.languages == (("en", "de") if kind == "bitext" else ("en",))
    assert len(found.negatives) == len(task_types.TYPES[kind].keys) - 2


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"finish_reason": "max_tokens"}, "ended by max_tokens"),
        ({"finish_reason": "safety"}, "ended by safety"),
        ({"answer": None, "gave_up": "six tries"}, "given up"),
        ({"text": "I cannot do that."}, "not JSON"),
        ({"text": ""}, "not JSON"),
        ({"text": "[" * 5_000}, "not JSON"),
        ({"text": '["a", "b"]'}, "other fields"),
        ({"fields": {**GOOD, "note": "mine"}}, "other fields"),
        ({"fields": {"user_query": "q", "positive_document": "p"}}, "other fields"),
        ({"fields": {**GOOD, "user_query": 3}}, "other fields"),
        ({"fields": {**GOOD, "user_query": None}}, "other fields"),
        ({"fields": {**GOOD, "user_query": " \u202e\n"}}, "empty"),
        ({"fields": {**GOOD, "positive_document": "a" * 2_001}}, "too long"),
        ({"text": "a" * 5_000_000}, "too long"),
        ({"fields": {**GOOD, "user_query": "bread is  KEPT dry."}}, "same text twice"),
        ({"fields": {**GOOD, "hard_negative_document": "Bread is kept\ndry."}}, "same text twice"),
        ({"text": json.dumps({**GOOD, "user_query": "\ud83d"})}, "not Unicode"),
        ({"prompt_version": "an older one"}, "other prompt version"),
        ({"task_type": "long-medium"}, "unknown task type"),
        ({"drawn": {}}, "damaged entry"),
        ({"answer": 7}, "damaged entry"),
    ],
)
def test_what_is_no_good_example_is_rejected_for_its_reason(changes, reason):
    assert judge(**changes) == reason


BODY = json.dumps(GOOD)[:-1]


@pytest.mark.parametrize(
    "text",
    [
        f"```json\n{BODY}}}\n```",
        f"{BODY},\n}}",
        f"```\n{BODY} , }}```",
        BODY.replace('"', "'") + "}",
        BODY.replace("cold bread", "cold \\u0062read") + ",}",
    ],
)
def test_cosmetic_faults_of_json_are_mended(text):
    assert judge(text=text).query == "cold bread"
    assert judge(text=text).negatives == ("Wine is.",)


@pytest.mark.parametrize(
    "text",
    [
        BODY,  # the end is missing
        BODY[:-3],
        BODY[:-3] + "}",
        f"```json\n{BODY}",
        f"Here it is: {BODY}}}",
        f"{BODY}}} I hope that it helps",
        f'{BODY}, "user_query": "another one",}}',
    ],
)
def test_a_repair_never_adds_or_loses_a_word(text):
    assert judge(text=text) == "not JSON"


def test_characters_that_hide_text_are_removed_and_the_layout_stays():
    found = judge(fields={**GOOD, "user_query": " a\u202eb\x00c\u2066d\te\r\nf\u200fg "})
    assert found.query == "abcd\te\nf\u200fg"


def test_a_text_in_another_language_is_rejected_and_a_short_one_passes():
    check = lambda *texts, **drawn: answers.example(
        entry(0, "sts", dict(zip(("S1", "S2", "S3"), texts, strict=True)), **drawn), rules(check_language=True)
    )
    assert isinstance(check(GERMAN, GERMAN[:60], GERMAN[20:], language="de"), Example)
    assert check(GERMAN, GERMAN[:60], ENGLISH, language="de").detail.startswith("en, not de: 'The train")
    assert isinstance(check(GERMAN, ENGLISH[:19], "Hamburg", language="de"), Example)
    assert isinstance(check(GERMAN, GERMAN[:60], ENGLISH, language="sd"), Example)  # py3langid knows no Sindhi


def test_each_side_of_a_bitext_has_its_own_language():
    fields = lambda *texts: dict(zip(("S1", "S2", "S3"), texts, strict=True))
    asked = {"src_lang": "en", "tgt_lang": "de"}
    judge = lambda *texts: answers.example(entry(0, "bitext", fields(*texts), **asked), rules(check_language=True))
    assert isinstance(judge(ENGLISH, GERMAN, GERMAN[:70]), Example)
    assert judge(GERMAN, GERMAN[:70], ENGLISH).reason == "other language"


def test_real_texts_are_told_from_english_and_not_lost(data_dir):
    names = {"deu": "de", "fra": "fr", "rus": "ru", "tur": "tr", "vie": "vi", "swe": "sv", "jpn": "ja"}
    for ending, code in names.items():
        texts = (data_dir / "tatoeba" / f"{ending}-eng.{ending}").read_text(encoding="utf-8").splitlines()
        texts = [text for text in texts if len(text) >= 30][:50]
        assert sum(written_in.another_language(text, code) is not None for text in texts) == 0
        assert sum(written_in.another_language(text, "en") is None for text in texts) <= 1


def test_texts_of_evaluation_sets_are_kept_out_case_and_spacing_aside(tmp_path):
    secret = "Where can one find the secret Passage?"
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": secret, "more": ["what does that mean", 3]}) + "\n")
    (tmp_path / "b.csv").write_text('text,label\n"One, quite long, cell of a table",x\n')
    (tmp_path / "c.txt").write_text("A line of text that is held out for tests\r\n")
    path = tmp_path / "known.npy"
    files = [str(tmp_path / name) for name in ("a.jsonl", "b.csv", "c.txt")]
    assert contamination.write(files, path) == 3
    judge = lambda text: answers.example(entry(0, fields={**GOOD, "user_query": text}), rules(evaluation=str(path)))
    for text in ("where can one find the SECRET  passage?", "one, quite long,cell of a table"):
        assert judge(text).reason == "in an evaluation set"
    assert judge("A line of text that is held out\n for tests").detail.startswith("'A line of t")
    assert isinstance(judge("what does that mean"), Example)  # anybody says that
    with pytest.raises(UserError, match=r"cannot read evaluation texts"):
        contamination.write([__file__], path)


def test_answers_to_another_prompt_version_are_used_when_asked_for(tmp_path):
    old = entry(1, prompt_version="old")
    assert len(run(tmp_path, [entry(0), old])[0]) == 1
    both = {"short-long": (task_types.TYPES["short-long"].version, "old")}
    assert len(run(tmp_path, [entry(0), old], prompt_versions=both)[0]) == 2


def test_a_damaged_line_is_named_by_file_and_line_and_the_others_are_used(tmp_path):
    folder = ledger(tmp_path / "ledger", [entry(0)], [entry(1), entry(2), entry(3)])
    path = folder / "answers-00001.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"response_id":"r2"', b'"response_id":"r7"') + b'{"key": "torn')
    filters.run(folder, tmp_path / "filtered", rules(), 0.8, 1)
    assert [row["number"] for row in rows(tmp_path / "filtered", "examples")] == [0, 1, 3]
    said = [(row["reason"], row["detail"]) for row in rows(tmp_path / "filtered", "rejected")]
    assert said == [("damaged line", "answers-00001.jsonl:2"), ("damaged line", "answers-00001.jsonl:4")]


def test_a_request_that_was_given_up_and_then_answered_is_no_rejection(tmp_path):
    lost = [entry(i, answer=None, gave_up="429") for i in (0, 0, 1)]
    examples, rejected = run(tmp_path, lost, [entry(1)])
    assert [row["number"] for row in examples] == [1]
    assert [(row["key"], row["reason"], row["detail"]) for row in rejected] == [("short-long-0", "given up", "429")]


def test_brainstorms_are_no_examples_and_count_as_requests(tmp_path):
    examples, rejected = run(
        tmp_path, [entry(0), {**entry(1), "request": {**entry(1)["request"], "kind": "brainstorm"}}]
    )
    tally = filters.read_tally(tmp_path / "filtered")
    assert (len(examples), rejected) == (1, [])
    assert (tally["requests", "brainstorm"], tally["nanodollars", "m-1"], tally["tokens", "answers"]) == (1, 2_000, 40)


def test_neither_the_order_of_lines_nor_the_number_of_processes_changes_what_comes_out(tmp_path):
    entries = [row for row in mixed(60) if isinstance(row, dict) and row["answer"]]
    one, _ = run(tmp_path / "one", entries)
    random.Random(0).shuffle(entries)
    many, _ = run(tmp_path / "many", entries[:20], entries[20:50], entries[50:], processes=2)
    assert one == many
    order = [(row["task_type"], row["number"]) for row in one]
    assert order == sorted(order)
    read = lambda name: (tmp_path / name / "filtered" / "tally.jsonl").read_text()
    assert read("one") == read("many")


def test_every_rejection_is_written_down_and_counted(tmp_path):
    given = mixed(60)
    examples, rejected = run(tmp_path, given)
    counted = {name: n for name, n in filters.read_tally(tmp_path / "filtered").items() if "rejected" in name[0]}
    assert sum(counted.values()) == len(rejected)
    again = sum(1 for row in given if isinstance(row, dict) and row["gave_up"] == "429")
    assert len(examples) + len(rejected) + again == len(given)
    reasons = {row["reason"] for row in rejected}
    assert reasons == {"duplicate", "near duplicate", "ended by max_tokens", "given up", "damaged line"}


def test_an_answer_that_was_paid_twice_counts_once(tmp_path):
    examples, rejected = run(tmp_path, [entry(0), entry(0, fields={k: sentence(k) for k in GOOD})])
    assert len(examples) == 1
    assert [row["reason"] for row in rejected] == ["asked twice"]


def test_a_folder_without_a_ledger_is_said(tmp_path):
    with pytest.raises(UserError, match=r"no ledger here"):
        filters.run(tmp_path, tmp_path / "filtered", rules(), 0.8, 1)


def test_nothing_here_imports_jax():
    names = "answers beam_pipeline card charts contamination dataset duplicates filters statistics written_in"
    lines = "".join(f"import e5jax.synthetic.{name}\n" for name in [*names.split(), "synthetic_text_embeddings"])
    code = lines + "import sys; print({'jax', 'tensorflow', 'apache_beam'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_a_rejection_says_which_and_why():
    found = answers.example(entry(0, text="nothing"), rules())
    assert found == Rejected(key="short-long-0", task_type="short-long", reason="not JSON", detail="'nothing'")
