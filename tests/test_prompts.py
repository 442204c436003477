"""Instructions: those of the paper for every task it reports, whatever mteb calls its newer editions."""

import json

import pytest

from e5jax import prompts
from e5jax.errors import UserError


mteb = pytest.importorskip("mteb")
PAPER = prompts.load_table(None)
WIKIPEDIA = "Given a question, retrieve Wikipedia passages that answer the question"


def of_paper(task, task_type=""):
    return prompts.instruction(PAPER, task, task_type, "the default")


@pytest.mark.parametrize(("benchmark", "tasks"), [("MTEB(eng, v1)", 56), ("MTEB(eng, v2)", 41)])
def test_every_english_task_of_mteb_has_its_instruction(benchmark, tasks):
    names = [task.metadata.name for task in mteb.get_benchmark(benchmark).tasks]
    assert len(names) == tasks
    assert [name for name in names if of_paper(name) == "the default"] == []


def test_the_table_says_what_mteb_says_where_mteb_says_anything():
    theirs = {task.metadata.name: task.metadata.prompt for task in mteb.get_benchmark("MTEB(eng, v1)").tasks}
    theirs = {name: p["query"] if isinstance(p, dict) else p for name, p in theirs.items() if p}
    assert len(theirs) > 40
    assert {name: of_paper(name) for name in theirs} == theirs


@pytest.mark.parametrize(
    ("task", "same_as"),
    [
        ("HotpotQAHardNegatives", "HotpotQA"),
        ("QuoraRetrievalHardNegatives.v2", "QuoraRetrieval"),
        ("NFCorpusDecontaminated", "NFCorpus"),
        ("BiorxivClusteringP2P.v2", "BiorxivClusteringP2P"),
        ("ArXivHierarchicalClusteringS2S", "ArxivClusteringS2S"),
        ("Touche2020Retrieval.v3", "Touche2020"),
        ("SummEvalSummarization.v2", "SummEval"),
        ("CQADupstackUnixRetrieval", "CQADupstackRetrieval"),
        ("MIRACLRetrievalHardNegatives.v2", "MIRACLRetrieval"),
        ("BUCC.v2", "BUCC"),
        ("banking77", "Banking77Classification"),
        ("stsb-de", "STSBenchmark"),
        ("tatoeba-fra", "Tatoeba"),
    ],
)
def test_another_edition_of_the_same_texts_has_the_same_instruction(task, same_as):
    assert of_paper(task) == prompts.PAPER[same_as] == prompts.for_task(task)


def test_the_twelve_parts_of_cqadupstack_have_the_whole_s():
    parts = mteb.get_task("CQADupstackRetrieval").metadata.tasks
    assert len(parts) == 12
    assert {of_paper(part.metadata.name) for part in parts} == {prompts.PAPER["CQADupstackRetrieval"]}


def test_miracl_and_squad_ask_for_wikipedia_passages_and_bitext_for_parallel_sentences():
    assert of_paper("MIRACLRetrieval") == of_paper("XQuADRetrieval") == of_paper("xquad-vi") == WIKIPEDIA
    assert of_paper("Tatoeba") == of_paper("BUCC") == "Retrieve parallel sentences."
    assert of_paper("FloresBitextMining", "BitextMining") == "Retrieve parallel sentences."
    assert of_paper("FaroeseSTS", "STS") == "Retrieve semantically similar text."


def test_what_no_table_has_gets_the_default(tmp_path):
    assert of_paper("our-own", "Retrieval") == "the default"
    assert prompts.instruction(PAPER, "our-own", "Retrieval", "") is None


def test_none_is_none_for_every_task():
    assert prompts.instruction(prompts.load_table("none"), "SciFact", "Retrieval", "the default") is None


def test_a_file_replaces_the_table_the_task_before_its_type_and_empty_is_none(tmp_path):
    file = tmp_path / "prompts.json"
    file.write_text(json.dumps({"SciFact": "mine", "Retrieval": "of the type", "NQ": ""}))
    table = prompts.load_table(str(file))
    said = {name: prompts.instruction(table, name, "Retrieval", "default") for name in ("SciFact", "FiQA2018", "NQ")}
    assert said == {"SciFact": "mine", "FiQA2018": "of the type", "NQ": None}
    assert prompts.instruction(table, "STS12", "STS", "default") == "default"
    assert table.chosen and not PAPER.chosen


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{broken", "not a JSON file"),
        (b'{"a": "\xff"}', "not a JSON file"),
        (b'["a"]', "JSON object"),
        (b"{}", "JSON object"),
        (b'{"NQ": "x", "SciFact": {"query": "y"}}', "'SciFact' must be a string"),
    ],
)
def test_a_file_that_is_no_table_is_refused_by_name(tmp_path, content, says):
    (tmp_path / "prompts.json").write_bytes(content)
    with pytest.raises(UserError, match=rf"prompts\.json: .*{says}"):
        prompts.load_table(str(tmp_path / "prompts.json"))


def test_a_file_that_is_not_there_is_refused_with_the_one_that_is(tmp_path):
    (tmp_path / "prompts.json").write_text("{}")
    with pytest.raises(UserError, match=r"did you mean .*prompts\.json"):
        prompts.load_table(str(tmp_path / "prompt.json"))


def test_a_task_without_instruction_is_answered_with_the_nearest():
    with pytest.raises(UserError, match=r"nfcorpu.*did you mean NFCorpus"):
        prompts.for_task("nfcorpu")
