"""Held-out search: the metrics of trec_eval, one passage a text, and a lexical baseline that finds words."""

import json

import numpy as np
import pytest

from e5jax import heldout
from e5jax.errors import UserError
from e5jax.formats import PAPER
from e5jax.records import Source


def write(path, *rows):
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return Source(path=str(path))


def row(query, positive, *negatives):
    return {"query": query, "positive": positive, "negatives": negatives}


def searched(queries, passages):
    relevant = (frozenset({0}),) * len(queries)
    return heldout.HeldOut(
        name="x", queries=tuple(queries), instructed=tuple(queries), passages=tuple(passages), relevant=relevant
    )


def test_metrics_are_those_of_trec_eval():
    trec = pytest.importorskip("pytrec_eval")
    rng, queries, passages = np.random.default_rng(0), 40, 60
    scores = rng.permutation(queries * passages).reshape(queries, passages).astype(np.float32)  # no ties
    relevant = [frozenset(rng.choice(passages, rng.integers(1, 15), replace=False).tolist()) for _ in range(queries)]
    judged = {str(q): {str(p): 1 for p in right} for q, right in enumerate(relevant)}
    run = {str(q): {str(p): float(s) for p, s in enumerate(row)} for q, row in enumerate(scores)}
    theirs = trec.RelevanceEvaluator(judged, {"ndcg_cut.10", "recall.10", "recip_rank"}).evaluate(run)
    mean = lambda name: np.mean([values[name] for values in theirs.values()])
    assert heldout.ranking_metrics(scores, relevant) == pytest.approx(
        {"ndcg@10": mean("ndcg_cut_10"), "recall@10": mean("recall_10"), "mrr": mean("recip_rank")}, abs=1e-6
    )


def test_a_pool_of_fewer_than_ten_passages_has_metrics():
    metrics = heldout.ranking_metrics(np.array([[1.0, 3.0, 2.0]]), [frozenset({2})])
    assert metrics == pytest.approx({"ndcg@10": 1 / np.log2(3), "recall@10": 1.0, "mrr": 0.5})


def test_equal_passages_are_one_and_equal_questions_one_with_all_right_answers(tmp_path):
    asked = write(tmp_path / "a.jsonl", row("q", "one", "x"), row("r", "one"), row("q", "two", "one"))
    pool = write(tmp_path / "b.jsonl", row("never asked", "two", "three"))
    found = heldout.load("set", [asked], [pool], PAPER, "stop")
    assert found.queries == ("q", "r")
    assert sorted(found.passages) == ["one", "three", "two", "x"]
    right = [{found.passages[p] for p in passages} for passages in found.relevant]
    assert right == [{"one", "two"}, {"one"}]


def test_queries_carry_their_instruction_and_passages_none(tmp_path):
    source = write(tmp_path / "a.jsonl", row("q", "p") | {"task": "Find it"})
    found = heldout.load("set", [source], [], PAPER, "stop")
    assert found.queries == ("q",) and found.passages == ("p",)
    assert found.instructed == ("Instruct: Find it\nQuery: q",)


def test_a_bad_record_stops_with_its_place_or_is_left_out(tmp_path):
    source = write(tmp_path / "a.jsonl", row("q", "p"), "{broken")
    with pytest.raises(UserError, match=r"a\.jsonl:2"):
        heldout.load("set", [source], [], PAPER, "stop")
    assert heldout.load("set", [source], [], PAPER, "skip").passages == ("p",)


def test_bm25_ranks_the_passage_with_the_rare_word_of_the_query_first():
    passages = ["the dog and the cat", "the dog of the house", "the cat, the zymurgy", "a house and a dog", "the house"]
    scores = heldout.bm25_scores(searched(["The dog, the house, Zymurgy?"], passages))
    assert scores.shape == (1, 5) and scores[0].argmax() == 2


def test_bm25_finds_chinese():
    passages = ["今天天气很好", "机器学习是人工智能的分支", "他喜欢吃苹果"]
    scores = heldout.bm25_scores(searched(["什么是人工智能", "苹果好吃吗"], passages))
    assert scores.argmax(1).tolist() == [1, 2]


def test_bm25_scores_nothing_where_no_word_is_known_or_a_passage_has_none():
    scores = heldout.bm25_scores(searched(["unheard", "known"], ["a known word", "!?"]))
    assert not scores[0].any() and scores[1, 0] > 0 and scores[1, 1] == 0
