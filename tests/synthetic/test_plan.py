import collections
import dataclasses
import math
import subprocess
import sys

import pytest

from e5jax.errors import FailedError, UserError
from e5jax.synthetic import languages, plan, topics
from e5jax.synthetic.config import SynthesizeConfig
from e5jax.synthetic.request import Sampling
from e5jax.synthetic.task_types import TYPES


SAMPLING = Sampling(model="m", temperature=1.0, top_p=1.0, max_tokens=100)
CONFIG = SynthesizeConfig(workdir="w", examples=20_000)


def small(**changes):
    return dataclasses.replace(CONFIG, examples=60, **changes)


def a_pool(config=CONFIG):
    asked = plan.brainstorms(config, SAMPLING)
    return plan.pool((vars(r), [f"{r.task_type} {r.number} {k}" for k in range(20)]) for r in asked)


@pytest.fixture(scope="module")
def twenty_thousand():
    return list(plan.examples(CONFIG, SAMPLING, a_pool()))


def test_types_of_20_000_prompts_are_within_a_point_of_the_papers_shares(twenty_thousand):
    count = collections.Counter(request.task_type for request in twenty_thousand)
    total = sum(t.share for t in TYPES.values())
    for t in TYPES.values():
        assert 100 * count[t.name] / 20_000 == pytest.approx(100 * t.share / total, abs=1)


@pytest.mark.parametrize("counted", ["first", "second", "half each"])
def test_languages_of_20_000_prompts_are_within_a_point_of_the_papers_shares(twenty_thousand, counted):
    share = collections.Counter()
    for request in twenty_thousand:
        written = [request.drawn[name] for name in TYPES[request.task_type].languages]
        written = {"first": written[:1], "second": written[-1:], "half each": written}[counted]
        share.update({code: written.count(code) * 100 / 20_000 / len(written) for code in written})
    assert set(share) == set(languages.NAMES)
    for code, expected in languages.PAPER.items():
        assert share[code] == pytest.approx(100 * expected, abs=1), code
    others = sum(s for code, s in share.items() if code not in languages.NAMED)
    assert others == pytest.approx(languages.OTHERS, abs=1)


def test_values_of_a_placeholder_are_equally_frequent(twenty_thousand):
    count = collections.Counter(r.drawn["num_words"] for r in twenty_thousand if r.task_type == "short-long")
    assert set(count) == {"50", "100", "200", "300", "400", "500"}
    assert max(count.values()) < 1.15 * min(count.values())


def test_bitext_has_two_languages_each_as_often_as_its_share():
    shares = {"en": 0.45, "de": 0.35, "fr": 0.15, "ja": 0.05}
    pairs = [plan.pair(shares, str(i)) for i in range(20_000)]
    assert all(src != tgt for src, tgt in pairs)
    for side in (0, 1):
        count = collections.Counter(pair[side] for pair in pairs)
        assert all(count[name] / 20_000 == pytest.approx(share, abs=0.01) for name, share in shares.items())
    assert len(set(pairs)) == 12


def test_a_language_with_most_of_the_share_is_on_one_side_of_every_pair():
    pairs = [plan.pair({"en": 0.9, "de": 0.05, "fr": 0.05}, str(i)) for i in range(500)]
    assert all((src == "en") != (tgt == "en") for src, tgt in pairs)
    assert set(pairs) == {("en", "de"), ("de", "en"), ("en", "fr"), ("fr", "en")}


def test_sixty_examples_have_all_six_types_whatever_the_seed():
    for seed in range(50):
        requests = plan.examples(small(seed=seed), SAMPLING, plan.stand_in_pool())
        assert {request.task_type for request in requests} == set(TYPES)


def test_the_tasks_of_the_pool_are_used_evenly(twenty_thousand):
    for name, tasks in a_pool().items():
        used = collections.Counter(r.drawn["task"] for r in twenty_thousand if r.task_type == name)
        assert set(used) <= set(tasks)
        assert len(used) > 0.99 * len(tasks)
        assert max(used.values()) <= 6  # three on average


def test_example_i_is_a_function_of_seed_and_i_alone(twenty_thousand):
    pool, chosen = a_pool(), plan.mix(CONFIG)
    for i in (0, 7, 12_345, 19_999):
        assert plan.example(chosen, SAMPLING, pool, i).key == twenty_thousand[i].key
    fewer = list(plan.examples(dataclasses.replace(CONFIG, examples=100), SAMPLING, pool))
    assert [r.key for r in fewer] == [r.key for r in twenty_thousand[:100]]
    assert len({r.key for r in twenty_thousand}) == 20_000
    other = plan.example(plan.mix(dataclasses.replace(CONFIG, seed=1)), SAMPLING, pool, 7)
    assert other.drawn != twenty_thousand[7].drawn


def test_keys_do_not_depend_on_the_process_that_makes_them():
    code = (
        "from tests.synthetic.test_plan import *\n"
        "print([r.key for r in plan.examples(small(), SAMPLING, plan.stand_in_pool())][-1])\n"
        "print([r.key for r in plan.brainstorms(small(topics='builtin'), SAMPLING)][-1])"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], env={"PYTHONHASHSEED": s}, capture_output=True, text=True)
        for s in ("1", "2")
    ]
    assert runs[0].stdout == runs[1].stdout
    assert len(runs[0].stdout.split()) == 2, runs[0].stderr


def test_draws_are_the_same_on_every_version():
    """Changing one of these asks, and pays, again for everything that is in somebody's ledger."""
    assert plan.uniform(0, 1, "language") == 0.8856274493944803
    assert plan.pair(languages.PAPER, "0 1") == ("zh", "uz")


def test_examples_are_made_as_they_are_asked_for():
    many = plan.examples(dataclasses.replace(CONFIG, examples=10**12), SAMPLING, plan.stand_in_pool())
    assert next(many).number == 0


def test_brainstorms_give_a_task_for_every_three_examples_of_their_type():
    count = collections.Counter(r.task_type for r in plan.brainstorms(CONFIG, SAMPLING))
    assert set(count) == {"short-long", "long-short", "short-short", "long-long"}
    total = sum(t.share for t in TYPES.values())
    assert all(n == math.ceil(20_000 * TYPES[name].share / total / 60) for name, n in count.items())
    assert [r.number for r in plan.brainstorms(small(), SAMPLING)] == [0, 0, 0, 0]  # never none


@pytest.mark.parametrize("brainstorms", [4, 5, 7, 100])
def test_as_many_brainstorms_as_the_config_says(brainstorms):
    requests = list(plan.brainstorms(small(brainstorms=brainstorms), SAMPLING))
    assert len(requests) == brainstorms
    assert len({r.task_type for r in requests}) == 4
    assert len({r.key for r in requests}) == brainstorms


def test_more_examples_keep_the_brainstorms_there_are():
    few = {r.key for r in plan.brainstorms(dataclasses.replace(CONFIG, examples=5_000), SAMPLING)}
    assert few < {r.key for r in plan.brainstorms(CONFIG, SAMPLING)}


def test_a_brainstorm_is_about_one_topic_and_keeps_as_many_tasks_as_it_was_asked_for(tmp_path):
    (tmp_path / "topics.txt").write_text("Food > Bread\n\n  Food >  Tea \nFood > Bread\r\n", encoding="utf-8")
    config = small(topics=str(tmp_path / "topics.txt"), tasks_per_topic=2, brainstorms=12)
    requests = list(plan.brainstorms(config, SAMPLING))
    assert collections.Counter(r.drawn["topic"] for r in requests) == {"Food > Bread": 6, "Food > Tea": 6}
    assert all(r.drawn["topic"] in r.prompt and r.drawn["count"] == "2" for r in requests)
    pool = plan.pool([(vars(requests[0]), ["", "first", "second", "third"])])
    assert pool == {requests[0].task_type: ["first", "second"]}


def test_the_built_in_topics_are_a_taxonomy():
    listed = topics.load("builtin")
    assert len(listed) >= 400
    assert len({topic.split(" > ")[0] for topic in listed}) >= 30
    assert {topic.count(" > ") for topic in listed} <= {1, 2, 3}
    assert all(part.strip() == part and part for topic in listed for part in topic.split(" > "))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [(b"\n \n", "no topics"), (b"ok\n\xff\n", ":2: not UTF-8 at byte 0"), (b"ok\n" + b"x" * 400, ":2: 400 characters")],
)
def test_a_file_of_topics_that_is_none_is_refused_in_words(tmp_path, content, complaint):
    (tmp_path / "t.txt").write_bytes(content)
    with pytest.raises(UserError, match=complaint):
        topics.load(str(tmp_path / "t.txt"))


def test_a_missing_file_of_topics_and_a_folder_are_refused_in_words(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        topics.load(str(tmp_path / "none.txt"))
    with pytest.raises(UserError, match="is not a file"):
        topics.load(str(tmp_path))


def answer(number, tasks, task_type="short-long"):
    return {"task_type": task_type, "number": number, "drawn": {"count": "about 20"}}, tasks


def test_the_pool_is_the_same_in_whatever_order_answers_come_in():
    answers = [answer(1, ["c", "a"]), answer(0, ["a", "b"]), answer(0, ["a"], "long-long")]
    assert plan.pool(answers) == plan.pool(answers[::-1]) == {"long-long": ["a"], "short-long": ["a", "b", "c"]}


def test_tasks_are_one_line_and_blank_overlong_undecodable_and_repeated_ones_are_left_out():
    listed = ["  Find\n a\0 cure ", "\7", " \n", "x" * 501, "half \ud83d", 7, "Find a cure", "x" * 500]
    assert plan.pool([answer(0, listed)]) == {"short-long": ["Find a cure", "x" * 500]}


def test_a_blank_line_is_no_task():
    assert plan.one_line(" \n") is None


def test_no_example_before_every_type_has_a_task():
    with pytest.raises(FailedError, match="no brainstorm gave a task for short-short, long-long"):
        plan.examples(CONFIG, SAMPLING, {"short-long": ["a"], "long-short": ["b"], "short-short": []})
    symmetric = plan.examples(small(types={"sts": 1.0}), SAMPLING, {})
    assert {r.task_type for r in symmetric} == {"sts"}
    assert list(plan.brainstorms(small(types={"sts": 1.0}), SAMPLING)) == []


def test_the_config_chooses_types_languages_and_values():
    config = small(
        types={"long-short": 3.0, "sts": 1.0, "bitext": 0.0},
        languages={"German": 1.0},
        placeholders={"long-short.num_words": ("at least 50",)},
    )
    requests = list(plan.examples(config, SAMPLING, plan.stand_in_pool()))
    assert collections.Counter(r.task_type for r in requests)["long-short"] == pytest.approx(45, abs=2)
    assert {r.drawn["language"] for r in requests} == {"de"}
    assert {r.drawn["num_words"] for r in requests if r.task_type == "long-short"} == {"at least 50"}


def test_a_language_given_by_code_and_by_name_has_the_sum_of_its_shares():
    shares = plan.mix(small(languages={"de": 1.0, "German": 2.0, "fr": 1.0})).languages.of
    assert shares == {"de": 0.75, "fr": 0.25}


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"types": {"short-lnog": 1.0}}, "did you mean short-long.*known: short-long, .*bitext"),
        ({"languages": {"xx": 1.0}}, "unknown xx.*known: af Afrikaans"),
        ({"placeholders": {"sts.units": ("word",)}}, "did you mean sts.unit.*known: short-long.query_type"),
        ({"placeholders": {"sts.unit": ()}}, "sts.unit has no values"),
        ({"types": {"sts": -1.0}}, "share of sts must be 0 or more, got -1"),
        ({"types": {"sts": math.nan}}, "share of sts"),
        ({"types": {"sts": 0.0}}, "all shares are 0"),
        ({"languages": {"en": 1.0}}, "bitext takes two"),
        ({"brainstorms": 3}, "brainstorms: 3 is too few"),
    ],
)
def test_a_mistake_in_the_config_is_answered_with_what_is_known(changes, complaint):
    with pytest.raises(UserError, match=complaint):
        list(plan.brainstorms(small(**changes), SAMPLING))


def test_the_worst_case_of_a_plan_is_known_before_there_are_tasks():
    longest = max(len(r.prompt) for r in plan.examples(small(), SAMPLING, plan.stand_in_pool()))
    real = max(len(r.prompt) for r in plan.examples(small(), SAMPLING, a_pool()))
    assert longest >= real
