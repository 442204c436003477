"""Tasks by name: what a folder of files holds, mteb's tasks and benchmarks, and what is wrong in words."""

import json

import pytest

from e5jax import local_tasks, tasks
from e5jax.errors import UserError


mteb = pytest.importorskip("mteb")


def write(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


BEIR = {
    "corpus.jsonl": lines({"_id": "d1", "title": "T", "text": "one"}, {"_id": "d2", "text": "two"}),
    "queries.jsonl": lines({"_id": "q1", "text": "first?"}, {"_id": "q2", "text": "never judged"}),
    "qrels/test.tsv": "query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\td2\t0\n",
}
SQUAD = {
    "data": [
        {"paragraphs": [{"context": "P", "qas": [{"id": "1", "question": "a"}, {"id": "2", "question": "b"}]}]},
        {"paragraphs": [{"context": "R", "qas": [{"id": "3", "question": "c"}]}, {"context": "P", "qas": []}]},
    ]
}
STS = "A cat.,The cat.,4.5\nA dog.,A car.,0\n"
INTENTS = {"train.csv": "text,category\nhello,b\nbye,a\n", "test.csv": "category,text\na,see you\n"}


def load(folder, files):
    (task,) = local_tasks.discover(write(folder, files)).values()
    return local_tasks.load(task)


@pytest.fixture
def everything(tmp_path):
    """A folder with a task of every form."""
    beir = {f"faq/{name}": content for name, content in BEIR.items()}
    squad = {"quiz/de.json": json.dumps(SQUAD, indent=1), "quiz/labels.json": '["a"]'}
    sts = {"similar/en-test.csv": STS, "similar/en-train.csv": STS}
    bitext = {"talk/fra-eng.fra": "Oui.\nNon.\n", "talk/fra-eng.eng": "Yes.\nNo.\n", "talk/deu-eng.deu": "Ja.\n"}
    intents = {f"intents/{name}": content for name, content in INTENTS.items()}
    return write(tmp_path, {**beir, **squad, **sts, **bitext, **intents, "readme.txt": "hi", ".git/x-test.csv": STS})


def test_tasks_are_found_by_what_lies_in_the_folders(everything):
    found = local_tasks.discover(everything)
    forms = {name: task.form for name, task in found.items()}
    assert forms == {
        "faq": "beir",
        "intents": "classification",
        "quiz-de": "squad",
        "similar-en": "sts",
        "talk-fra": "bitext",
    }


def test_a_folder_may_itself_be_a_task(everything):
    assert list(local_tasks.discover(everything / "faq")) == ["faq"]
    assert list(local_tasks.discover(everything / "talk")) == ["talk-fra"]


def test_nothing_is_read_before_a_task_is_loaded(tmp_path):
    found = local_tasks.discover(write(tmp_path / "x", {"en-test.csv": b"\xff", "train.csv": b"\xff", "test.csv": ""}))
    assert {*found} == {"x", "x-en"}


def test_the_real_data_are_35_tasks_and_all_of_them_load(data_dir):
    found = local_tasks.discover(data_dir)
    of = lambda folder: sorted(name.removeprefix(f"{folder}-") for name in found if name.startswith(f"{folder}-"))
    assert of("stsb") == ["de", "en", "es", "fr", "ru", "zh"]
    assert of("xquad") == ["ar", "de", "en", "es", "ru", "tr", "vi", "zh"]
    assert len(of("tatoeba")) == 20 and "banking77" in found and len(found) == 35
    loaded = {name: local_tasks.load(task) for name, task in found.items()}
    assert len(loaded["xquad-zh"].queries) == 1190 and len(loaded["xquad-zh"].corpus) == 240
    assert {len(loaded[f"stsb-{code}"].score) for code in of("stsb")} == {1379}
    assert len(loaded["banking77"].test[0]) == 3080 and max(loaded["banking77"].test[1]) == 76


def test_a_bitext_with_two_targets_is_named_in_full(tmp_path):
    files = {f"{pair}.{side}": "x\n" for pair in ("deu-eng", "deu-fra") for side in pair.split("-")}
    assert list(local_tasks.discover(write(tmp_path / "b", files))) == ["b-deu-eng", "b-deu-fra"]


def test_two_tasks_of_one_name_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"task a-b-c: rename"):
        local_tasks.discover(write(tmp_path, {"a-b/c-test.csv": STS, "a/b-c-test.csv": STS}))


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        local_tasks.discover(tmp_path / "nothing")


def test_beir_keeps_judged_queries_titles_and_grades(tmp_path):
    found = load(tmp_path, BEIR)
    assert found.queries == {"q1": "first?"}
    assert found.corpus == {"d1": ("T", "one"), "d2": ("", "two")}
    assert found.relevant == {"q1": {"d1": 1, "d2": 0}}


def test_beir_without_a_test_split_takes_the_development_queries(tmp_path):
    files = {**BEIR, "qrels/dev.tsv": BEIR["qrels/test.tsv"], "qrels/train.tsv": ""}
    assert load(tmp_path, {name: content for name, content in files.items() if name != "qrels/test.tsv"}).relevant


def test_squad_searches_each_passage_once(tmp_path):
    found = load(tmp_path, {"en.json": json.dumps(SQUAD)})
    assert found.queries == {"q0": "a", "q1": "b", "q2": "c"}
    assert found.corpus == {"p0": ("", "P"), "p1": ("", "R")}
    assert found.relevant == {"q0": {"p0": 1}, "q1": {"p0": 1}, "q2": {"p1": 1}}


def test_pairs_may_have_a_header_in_any_order(tmp_path):
    named = "id,score,sentence2,sentence1\n7,4.5,The cat.,A cat.\n8,0,A car.,A dog.\n"
    bare = load(tmp_path / "a", {"en-test.csv": STS})
    assert bare == load(tmp_path / "b", {"en-test.csv": named})
    assert bare.first == ["A cat.", "A dog."] and bare.score == [4.5, 0.0]


def test_labels_are_numbered_by_name(tmp_path):
    found = load(tmp_path, INTENTS)
    assert found == local_tasks.Labelled(train=(["hello", "bye"], [1, 0]), test=(["see you"], [0]))


WRONG = {
    "not UTF-8": ({"en-test.csv": b"a,b,1\n\xff,b,2\n"}, r"en-test\.csv:2: not UTF-8"),
    "misaligned": ({"fra-eng.fra": "a\nb\n", "fra-eng.eng": "a\n"}, r"fra-eng\.fra: 2 lines, but .*eng has 1"),
    "an empty side": ({"fra-eng.fra": "a\n\n", "fra-eng.eng": "a\nb\n"}, r"fra-eng\.fra:2: .*empty"),
    "cells of a pair": ({"en-test.csv": "a,b,1\na,b\n"}, r"en-test\.csv:2: 2 cells for 3 columns"),
    "a row over two lines": ({"en-test.csv": 'a,"b\nc",1\na,b,x\n'}, r"en-test\.csv:3: the score is 'x', not a number"),
    "no score": ({"en-test.csv": "a,b,high\n"}, r"en-test\.csv:1: the score is 'high'"),
    "an infinite score": ({"en-test.csv": "a,b,inf\n"}, r"en-test\.csv:1: the score is 'inf'"),
    "no columns": ({"en-test.csv": "left,right\na,b\n"}, r"en-test\.csv:1: neither a header"),
    "an open quote": ({"en-test.csv": 'a,b,1\n"a,b,2\n'}, r"en-test\.csv:2: "),
    "an empty file": ({"en-test.csv": ""}, r"en-test\.csv: the file is empty"),
    "no label column": ({**INTENTS, "test.csv": "text,x\na,b\n"}, r"test\.csv:1: the header must have text and label"),
    "an unknown label": ({**INTENTS, "test.csv": "text,label\nt,c\n"}, r"test\.csv:2: .*train\.csv has no .* 'c'"),
    "cells of a text": ({**INTENTS, "train.csv": "text,label\nt\n"}, r"train\.csv:2: 1 cells for 2 columns"),
    "an unknown query": ({**BEIR, "qrels/test.tsv": "h\nq9\td1\t1\n"}, r"test\.tsv:2: .*queries\.jsonl has no 'q9'"),
    "an unknown document": ({**BEIR, "qrels/test.tsv": "h\nq1\td9\t1\n"}, r"test\.tsv:2: .*corpus\.jsonl has no 'd9'"),
    "a grade": ({**BEIR, "qrels/test.tsv": "h\nq1\td1\tyes\n"}, r"test\.tsv:2: the score is 'yes', not a whole"),
    "cells of a judgement": ({**BEIR, "qrels/test.tsv": "h\nq1 d1 1\n"}, r"test\.tsv:2: 1 cells"),
    "no judgement": ({**BEIR, "qrels/test.tsv": "query-id\tcorpus-id\tscore\n"}, r"test\.tsv: no judgement"),
    "a document twice": ({**BEIR, "corpus.jsonl": BEIR["corpus.jsonl"] * 2}, r"corpus\.jsonl:3: _id 'd1' stood"),
    "no _id": ({**BEIR, "queries.jsonl": lines({"id": "q1", "text": "x"})}, r"queries\.jsonl:1: .*'_id'"),
    "a number as text": ({**BEIR, "queries.jsonl": lines({"_id": "q1", "text": 1})}, r"queries\.jsonl:1: .*strings"),
    "no JSON": ({**BEIR, "queries.jsonl": "{\n"}, r"queries\.jsonl:1: not a JSON object"),
    "no SQuAD": ({"en.json": '{"data": [1]}'}, r"en\.json: not SQuAD"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_mistake_in_a_file_is_named_with_its_place(tmp_path, what):
    files, says = WRONG[what]
    with pytest.raises(UserError, match=says):
        load(tmp_path, files)


def test_a_local_task_is_mteb_s_own_with_its_protocol(everything):
    found = {
        task.metadata.name: task for task in tasks.resolve(["faq", "similar-en", "talk-fra", "intents"], everything)
    }
    kinds = {name: (task.metadata.type, task.metadata.main_score) for name, task in found.items()}
    assert kinds == {
        "faq": ("Retrieval", "ndcg_at_10"),
        "similar-en": ("STS", "cosine_spearman"),
        "talk-fra": ("BitextMining", "f1"),
        "intents": ("Classification", "accuracy"),
    }
    theirs = mteb.get_task("Banking77Classification")
    for setting in ("samples_per_label", "n_experiments", "seed", "is_cross_validation", "evaluator_model"):
        assert getattr(found["intents"], setting) == getattr(theirs, setting)
    assert found["talk-fra"].metadata.eval_langs == ["fra-Latn", "eng-Latn"]
    assert found["similar-en"].metadata.eval_langs == ["eng-Latn"]
    for task in found.values():
        task.metadata._validate_metadata()
        assert isinstance(task, getattr(mteb.abstasks, f"AbsTask{task.metadata.type}"))


@pytest.fixture
def cached(monkeypatch):
    """As if the data of every task were on this machine."""
    monkeypatch.setattr(tasks, "_cached", lambda path: True)


def test_names_are_local_tasks_then_mteb_s_then_benchmarks(everything, cached):
    write(everything / "SciFact", BEIR)
    resolved = tasks.resolve(["similar-en", "SciFact", "NFCorpus"], everything)
    assert [task.metadata.name for task in resolved] == ["similar-en", "SciFact", "NFCorpus"]
    assert [task.metadata.revision == tasks.LOCAL for task in resolved] == [True, True, False]
    names = lambda name: tasks.resolve([name], everything)
    assert len(names("MTEB(eng, v1)")) == 56 and len(names("BEIR")) > 10


def test_a_benchmark_keeps_its_languages_and_a_task_has_all_of_its_own(cached):
    subsets = lambda name: {task.metadata.name: task.hf_subsets for task in tasks.resolve([name], None)}
    assert subsets("MTEB(eng, v1)")["STS17"] == ["en-en"]
    assert len(subsets("STS17")["STS17"]) > 5
    assert len(subsets("MIRACLRetrieval")["MIRACLRetrieval"]) == 18


def test_no_task_is_run_twice(cached):
    assert len(tasks.resolve(["SciFact", "MTEB(eng, v1)", "SciFact"], None)) == 56


@pytest.mark.parametrize(
    ("name", "near"), [("quiz-fe", "quiz-de"), ("scifakt", "SciFact"), ("mteb(eng,v1)", r"MTEB\(eng, v1\)")]
)
def test_an_unknown_name_is_answered_with_the_nearest_of_every_kind(everything, name, near):
    with pytest.raises(UserError, match=f"did you mean .*{near}"):
        tasks.resolve([name], everything)


def test_a_name_like_no_other_is_answered_with_what_there_is(everything):
    with pytest.raises(UserError, match="has faq, intents, quiz-de, similar-en, talk-fra"):
        tasks.resolve(["zzzzzzzz"], everything)
    with pytest.raises(UserError, match="--data-dir"):
        tasks.resolve(["zzzzzzzz"], None)


def test_a_task_about_pictures_is_refused():
    with pytest.raises(UserError, match="Birdsnap is about image"):
        tasks.resolve(["Birdsnap"], None)


def test_data_over_the_network_are_refused_at_once_while_offline(everything):
    with pytest.raises(UserError, match=r"^SciFact: its data come over the network, and HF_HUB_OFFLINE is set"):
        tasks.resolve(["quiz-de", "SciFact"], everything)
    with pytest.raises(UserError, match=r"^CQADupstackAndroidRetrieval, .* …: "):
        tasks.resolve(["CQADupstackRetrieval"], everything)


def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch, everything):
    import datasets
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    assert tasks.resolve(["quiz-de"], everything) and not constants.HF_HUB_OFFLINE  # not asked for local files
    with pytest.raises(UserError, match=r"SciFact: .*127\.0\.0\.1:9 does not answer"):
        tasks.resolve(["SciFact"], None)
    assert constants.HF_HUB_OFFLINE and datasets.config.HF_HUB_OFFLINE


def test_what_is_cached_is_found_where_either_library_keeps_it(monkeypatch, tmp_path):
    import datasets
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    assert not tasks._cached("mteb/scifact")
    (tmp_path / "hub" / "datasets--mteb--scifact").mkdir(parents=True)
    (tmp_path / "datasets" / "mteb___nfcorpus").mkdir(parents=True)
    assert tasks._cached("mteb/scifact") and tasks._cached("mteb/nfcorpus") and not tasks._cached("mteb/fiqa")
