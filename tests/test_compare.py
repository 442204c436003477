"""Differences between two evaluations, and how much of them is chance."""

import json

import numpy as np
import pytest
from scipy import stats

from e5jax import compare, pictures
from e5jax.errors import UserError
from e5jax.results import Results, TaskResult


RNG = np.random.default_rng(0)
GOLD = np.round(RNG.uniform(0, 5, 300) * 5) / 5  # many ties, as ratings have
NEAR, FAR = GOLD + RNG.normal(0, 1.0, 300), GOLD + RNG.normal(0, 2.0, 300)


def scored(scores, task="t", **changes):
    scores = np.asarray(scores, np.float64)
    fields = {"task": task, "metric": "accuracy", "value": float(scores.mean()), "n": len(scores)}
    return TaskResult(**{**fields, "subsets": {}, "prompt": {}, "data": "", "examples": {"score": scores}, **changes})


def rated(predicted, gold=GOLD):
    rho = float(stats.spearmanr(predicted, gold).statistic)
    return scored(gold, metric="cosine_spearman", value=rho, examples={"predicted": predicted, "gold": gold})


def run_of(*found, model="m"):
    return Results(model=model, identity={}, results=found, paper={}, versions={})


def one(a, b):
    (row,) = compare.compare(run_of(a), run_of(b))
    return row


def scipy_interval(statistic, *data):
    """scipy's percentile interval of as many paired resamples."""
    found = stats.bootstrap(
        data,
        statistic,
        paired=True,
        vectorized=False,
        method="percentile",
        n_resamples=compare.RESAMPLES,
        confidence_level=compare.LEVEL,
        rng=np.random.default_rng(1),
    )
    return found.confidence_interval


def test_the_interval_of_a_mean_is_scipy_s():
    a, b = RNG.uniform(size=200), RNG.uniform(size=200)
    row = one(scored(a), scored(b))
    theirs = scipy_interval(lambda x, y: np.mean(y) - np.mean(x), a, b)
    np.testing.assert_allclose(row.interval, theirs, atol=0.15 * (theirs.high - theirs.low) / 2)
    half = 1.96 * np.std(b - a, ddof=1) / np.sqrt(200)  # the normal approximation, in closed form
    np.testing.assert_allclose(row.interval, [row.difference - half, row.difference + half], atol=0.15 * half)


def test_the_interval_of_spearman_is_scipy_s():
    row = one(rated(FAR), rated(NEAR))
    rho = lambda x, y: stats.spearmanr(x, y).statistic
    theirs = scipy_interval(lambda a, b, g: rho(b, g) - rho(a, g), FAR, NEAR, GOLD)
    np.testing.assert_allclose(row.interval, theirs, atol=0.15 * (theirs.high - theirs.low) / 2)
    assert row.difference == pytest.approx(rho(NEAR, GOLD) - rho(FAR, GOLD))


def test_spearman_of_a_draw_is_that_of_the_drawn_examples():
    counts = next(compare.draws(300))[:20]
    predicted = np.round(NEAR, 1)  # ties on both sides
    for count, rho in zip(counts, compare.spearman(predicted, GOLD, counts), strict=True):
        drawn = np.repeat(np.arange(300), count)
        assert rho == pytest.approx(stats.spearmanr(predicted[drawn], GOLD[drawn]).statistic, abs=1e-12)


def test_examples_are_drawn_in_pairs():
    a = RNG.uniform(size=400)
    row = one(scored(a), scored(a + 0.01))  # unpaired, 0.01 would drown
    np.testing.assert_allclose(row.interval, [0.01, 0.01], atol=1e-9)
    assert row.inside is False and row.said == "B is higher"
    assert one(scored(a), scored(a - 0.01)).said == "A is higher"


def test_draws_are_n_of_n_and_the_same_every_time(monkeypatch):
    monkeypatch.setattr(compare, "BLOCK", 30_000)  # several blocks
    counts = np.concatenate(list(compare.draws(50)))
    assert counts.shape == (compare.RESAMPLES, 50) and (counts.sum(axis=1) == 50).all()
    np.testing.assert_array_equal(counts, np.concatenate(list(compare.draws(50))))
    assert len(np.unique(counts, axis=0)) == compare.RESAMPLES
    assert counts.mean(axis=0) == pytest.approx(1, abs=0.1)


def test_equal_models_are_told_apart_as_seldom_as_the_level_says(monkeypatch):
    monkeypatch.setattr(compare, "RESAMPLES", 400)
    rng = np.random.default_rng(3)
    pairs = [rng.normal(size=(2, 80)) for _ in range(300)]
    inside = [one(scored(a), scored(b)).inside for a, b in pairs]
    assert 0.90 < np.mean(inside) < 0.98


def test_a_difference_inside_the_interval_says_so():
    a = RNG.integers(0, 2, 100)
    row = one(scored(a), scored(np.roll(a, 1)))
    assert row.inside is True and row.said == "no clear difference" and row.interval[0] < 0 < row.interval[1]


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        (scored([0, 1], examples={}), scored([1, 1]), "A has no scores of single examples"),
        (scored([0, 1]), scored([1, 1], examples={}), "B has no scores of single examples"),
        (scored([0, 1]), scored([1, 1, 0]), "A has 2 examples, B 3"),
        (scored([0]), scored([1]), "a single example"),
        (rated(NEAR), rated(FAR, gold=GOLD[::-1]), "the examples are not the same"),
        (
            scored([0, 1], data="files 1"),
            scored([0, 1], data="files 2"),
            "the examples are not the same",
        ),
        (scored([0, 1]), rated(NEAR), "the examples were scored in different ways"),
        (scored([0, 1], value=0.7), scored([1, 1]), "the examples of A give 0.5000 together, not 0.7000"),
    ],
)
def test_without_pairs_of_examples_there_is_no_interval_and_it_says_why(a, b, said):
    b = TaskResult(**{**vars(b), "metric": a.metric})
    row = one(a, b)
    assert (row.interval, row.inside, row.said) == (None, None, f"no interval: {said}")
    assert row.difference == pytest.approx(b.value - a.value)


def test_only_tasks_that_both_have_under_one_metric_are_compared():
    a = run_of(scored([0, 1], "x"), scored([0, 1], "y"), scored([0, 1], "z"), model="a")
    b = run_of(scored([0, 1], "z"), scored([0, 1], "y", metric="f1"), model="b")
    assert [row.task for row in compare.compare(a, b)] == ["z"]
    with pytest.raises(UserError, match=r"no task in common: a has x \(accuracy\), .*; m has nothing"):
        compare.compare(a, run_of())


def test_a_comparison_is_written_for_people_and_for_programs(tmp_path):
    tasks = [scored(RNG.uniform(size=50), f"t{i}") for i in range(20)]
    better = [scored(r.examples["score"] + 0.1, r.task) for r in tasks[:19]] + [scored([1.0], "t19", value=0.5)]
    rows = compare.write(tmp_path / "d", run_of(*tasks, model="old"), run_of(*better, model="new"))
    stored = json.loads((tmp_path / "d" / "compare.json").read_text())
    assert stored["a"] == "old" and stored["b"] == "new" and stored["level"] == 0.95
    assert stored["differences"][0]["interval"] == list(rows[0].interval)
    assert stored["differences"][19]["interval"] is None
    text = (tmp_path / "d" / "compare.md").read_text()
    assert text.startswith("# new against old\n") and "| +0.1000 | +0.1000 … +0.1000 | B is higher |" in text
    assert "no interval: A has 50 examples, B 1 |" in text and "by chance alone" not in text  # 19 intervals
    assert (tmp_path / "d" / "compare.png").read_bytes()[:4] == b"\x89PNG"


def test_many_intervals_come_with_a_warning():
    rows = [one(scored([0, 1]), scored([0, 1]))] * 40
    assert "Of 40 such intervals about 2 would leave 0 out by chance alone." in compare.report("a", "b", rows)


def test_the_picture_tells_clear_from_unclear_by_more_than_colour(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(pictures, "save", lambda figure, axes, path: figures.append(figure))
    pictures.draw_intervals(["a", "b", "c"], [0.1, 0.0, 0.2], [(0.05, 0.15), (-0.1, 0.1), None], "B − A", tmp_path)
    dots = {line.get_label(): line for line in figures[0].axes[0].get_lines()}
    assert dots["clear difference"].get_markerfacecolor() != "white"
    assert dots["no clear difference"].get_markerfacecolor() == "white"
    assert dots["no interval"].get_marker() == "x"
