"""A results folder: what is written down, what goes on, what is refused, the table and the pictures."""

import dataclasses
import itertools
import json
import os

import numpy as np
import pytest

from e5jax import pictures, results
from e5jax.errors import FailedError, UserError
from e5jax.results import TaskResult


IDENTITY = {"digest": "d1", "max_length": 512, "window": None}
PAPER = {"STSBenchmark": 88.6, "MIRACLRetrieval/ar": 73.3, "MIRACLRetrieval/bn": 70.3}
STS = TaskResult(
    task="STSBenchmark",
    metric="cosine_spearman",
    value=0.875,
    n=1379,
    subsets={},
    prompt={"query": "Instruct: similar\nQuery: ", "passage": ""},
    data="files 0123",
    examples={"predicted": np.array([0.1, 0.5, 0.3]), "gold": np.array([1.0, 5.0, 3.0])},
)
MIRACL = TaskResult(
    task="MIRACLRetrieval",
    metric="ndcg_at_10",
    value=0.5,
    n=30,
    subsets={"ar": 0.8, "bn": 0.6, "de": 0.1},
    prompt={},
    data="r1 ar bn de dev",
    examples={},
)


def open_(folder, **changes):
    return results.open_folder(folder, "runs/a", IDENTITY | changes, PAPER)


def task(name, value, metric="accuracy"):
    return TaskResult(task=name, metric=metric, value=value, n=10, subsets={}, prompt={}, data="", examples={})


def run_of(model, *found, paper=()):
    return results.Results(model=model, identity={}, results=found, paper=dict(paper), versions={})


def table(text):
    """First cell -> the other cells, of all tables of a report."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return {first: rest for first, *rest in rows}


def same(a, b):
    arrays = zip(a.examples.items(), b.examples.items(), strict=True)
    equal = all(n == m and np.array_equal(x, y) for (n, x), (m, y) in arrays)
    return equal and dataclasses.replace(a, examples={}) == dataclasses.replace(b, examples={})


def test_a_stopped_evaluation_goes_on_behind_its_last_task(tmp_path):
    results.add(tmp_path / "r", open_(tmp_path / "r"), STS)
    again = open_(tmp_path / "r")
    assert same(again.find("STSBenchmark"), STS) and again.find("MIRACLRetrieval") is None
    both = results.add(tmp_path / "r", again, MIRACL)
    stored = results.read_folder(tmp_path / "r")
    assert [r.task for r in stored.results] == [r.task for r in both.results] == ["STSBenchmark", "MIRACLRetrieval"]
    assert same(stored.find("MIRACLRetrieval"), MIRACL)


def test_results_json_is_what_programs_were_promised(tmp_path):
    results.add(tmp_path, results.add(tmp_path, open_(tmp_path), STS), MIRACL)
    stored = json.loads((tmp_path / "results.json").read_text())
    assert list(stored) == ["model", "identity", "results", "versions"]
    assert stored["model"] == "runs/a" and {"e5jax", "jax", "mteb", "python"} <= set(stored["versions"])
    assert stored["results"] == [
        {
            "task": "STSBenchmark",
            "metric": "cosine_spearman",
            "value": 0.875,
            "n": 1379,
            "prompt": {"query": "Instruct: similar\nQuery: ", "passage": ""},
            "data": "files 0123",
            "paper": 0.886,
        },
        {
            "task": "MIRACLRetrieval",
            "metric": "ndcg_at_10",
            "value": 0.5,
            "n": 30,
            "subsets": {"ar": 0.8, "bn": 0.6, "de": 0.1},
            "data": "r1 ar bn de dev",
            "paper_subsets": {"ar": 0.733, "bn": 0.703},
        },
    ]
    assert results.read_folder(tmp_path).paper == {
        "STSBenchmark": 0.886,
        "MIRACLRetrieval/ar": 0.733,
        "MIRACLRetrieval/bn": 0.703,
    }


def test_a_task_measured_again_replaces_its_result(tmp_path):
    run = results.add(tmp_path, open_(tmp_path), task("a", 0.1))
    run = results.add(tmp_path, run, task("a", 0.2))
    assert [r.value for r in run.results] == [r.value for r in results.read_folder(tmp_path).results] == [0.2]


def test_a_writer_killed_before_the_rename_leaves_the_old_results(tmp_path, monkeypatch):
    run = results.add(tmp_path, open_(tmp_path), STS)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    for result in (dataclasses.replace(STS, examples={"score": np.zeros(2)}), MIRACL):
        with pytest.raises(KeyboardInterrupt):
            results.add(tmp_path, run, result)
    monkeypatch.undo()
    (stored,) = results.read_folder(tmp_path).results
    assert same(stored, STS)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"digest": "d2"}, "digest is 'd1' there and 'd2' here"),
        ({"max_length": 256}, "max_length is 512 there and 256 here"),
        ({"rope_theta": 1e5}, "rope_theta is None there and 100000.0 here"),
    ],
)
def test_a_folder_of_another_evaluation_is_refused_by_what_differs(tmp_path, changes, said):
    results.add(tmp_path, open_(tmp_path), STS)
    with pytest.raises(UserError, match=f"holds another evaluation: {said}. Choose another --output"):
        open_(tmp_path, **changes)
    with pytest.raises(UserError, match="model is 'runs/a' there and 'runs/b' here"):
        results.open_folder(tmp_path, "runs/b", IDENTITY, PAPER)


def test_settings_that_json_spells_otherwise_are_still_the_same(tmp_path):
    results.open_folder(tmp_path, "m", {"lengths": (1, 2)}, {})
    assert results.open_folder(tmp_path, "m", {"lengths": (1, 2)}, {}).identity == {"lengths": [1, 2]}


def test_nothing_of_the_user_s_is_written_over(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="holds something else than results"):
        open_(tmp_path)
    with pytest.raises(UserError, match="is a file"):
        open_(tmp_path / "thesis.txt")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("name", ["a/b", "../up", "MTEB(eng, v1)", "a_b", "..", "ΔΩ"])
def test_any_task_name_is_a_file_in_the_folder(tmp_path, name):
    other = dataclasses.replace(STS, task="a/b" if name == "a_b" else "a_b")
    run = results.add(tmp_path / "r", open_(tmp_path / "r"), dataclasses.replace(STS, task=name))
    results.add(tmp_path / "r", run, dataclasses.replace(other, examples={"score": np.zeros(2)}))
    assert [p.name for p in tmp_path.iterdir()] == ["r"]
    assert len(list((tmp_path / "r" / "examples").iterdir())) == 2
    assert set(results.read_folder(tmp_path / "r").find(name).examples) == {"predicted", "gold"}


def test_examples_are_read_without_pickle(tmp_path):
    results.add(tmp_path, open_(tmp_path), STS)
    with (tmp_path / "examples" / "STSBenchmark.npz").open("wb") as file:
        np.savez(file, score=np.array([{"code": "runs"}], dtype=object))
    with pytest.raises(UserError, match="not the results of an evaluation"):
        results.read_folder(tmp_path)


def test_a_score_that_is_no_number_stops_the_evaluation(tmp_path):
    run = open_(tmp_path)
    with pytest.raises(FailedError, match="STSBenchmark: cosine_spearman is nan"):
        results.add(tmp_path, run, dataclasses.replace(STS, value=float("nan")))
    assert results.read_folder(tmp_path).results == ()


def test_a_folder_without_results_says_where_there_are_some(tmp_path):
    open_(tmp_path / "bm25")
    with pytest.raises(UserError, match=r"no results\.json; it has .*bm25: name one of them"):
        results.read_folder(tmp_path)
    with pytest.raises(UserError, match=r"elsewhere: no results\.json$"):
        results.read_folder(tmp_path / "elsewhere")


@pytest.mark.parametrize("text", ["{", "[]", '{"model": "m"}', '{"model": 1, "results": [1]}'])
def test_a_torn_results_file_is_named(tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(UserError, match=r"results\.json: not the results of an evaluation"):
        results.read_folder(tmp_path)


def test_one_model_stands_beside_the_paper_with_the_difference():
    rows = table(results.report([run_of("m", task("a", 0.5), task("b", 0.25), paper={"a": 0.512})], {}))
    assert rows["task"] == ["metric", "n", "m", "paper", "difference"]
    assert rows["a"] == ["accuracy", "10", "0.5000", "0.512", "-0.0120"]
    assert rows["b"] == ["accuracy", "10", "0.2500", "–", "–"]
    assert rows["mean of 2 tasks"] == ["", "", "0.3750", "–", "–"]  # the paper has not both


def test_several_models_are_a_column_each():
    text = results.report([run_of("bm25", task("a", 0.5)), run_of("x|y", task("a", 0.6), task("b", 0.7))], {})
    rows = table(text.replace("\\|", "/"))
    assert rows["task"] == ["metric", "n", "bm25", "x/y"]
    assert rows["a"] == ["accuracy", "10", "0.5000", "0.6000"] and rows["b"][2:] == ["–", "0.7000"]
    assert rows["mean of 2 tasks"][2:] == ["–", "0.6500"]  # only of models that have them all


def test_models_whose_long_names_end_alike_keep_them_whole():
    long = "/a/folder/with/a/name/of/more/than/forty/characters/model"
    assert pictures.short_names([long, "bm25"]) == ["…" + long[-39:], "bm25"]
    rows = table(results.report([run_of(f"/x{long}", task("a", 0.5)), run_of(f"/y{long}", task("a", 0.6))], {}))
    assert rows["task"][2:] == [f"/x{long}", f"/y{long}"]


def test_means_are_by_type_where_there_are_several():
    types = {"a": "Classification", "b": "Classification", "c": "STS"}
    rows = table(results.report([run_of("m", task("a", 0.2), task("b", 0.4), task("c", 0.9))], types))
    assert rows["mean of 2 Classification"][2] == "0.3000" and "mean of 1 STS" not in rows
    assert rows["mean of 3 tasks"][2] == "0.5000"


def test_languages_have_a_table_with_the_mean_of_those_in_the_paper(tmp_path):
    rows = table(results.report([results.add(tmp_path, open_(tmp_path), MIRACL)], {}))
    assert rows["ar"] == ["0.8000", "0.733", "+0.0670"] and rows["de"] == ["0.1000", "–", "–"]
    assert rows["mean of the 2 in the paper"] == ["0.7000", "0.718", "-0.0180"]


@pytest.fixture
def figures(monkeypatch):
    """The figures that were drawn, laid out, instead of files."""
    drawn = []

    def save(figure, axes, path):
        figure.canvas.draw()
        drawn.append(figure)

    monkeypatch.setattr(pictures, "save", save)
    return drawn


def boxes(figure, texts):
    return [text.get_window_extent(figure.canvas.get_renderer()) for text in texts if text.get_text()]


def test_one_model_has_a_table_and_no_picture(tmp_path):
    results.write_report(tmp_path / "one", [run_of("m", task("a", 0.5))], {})
    assert [p.name for p in (tmp_path / "one").iterdir()] == ["results.md"]
    results.write_report(tmp_path / "two", [run_of("m", task("a", 0.5)), run_of("n", task("a", 0.7))], {})
    assert (tmp_path / "two" / "results.png").read_bytes()[:4] == b"\x89PNG"


def test_bars_start_at_zero_and_their_labels_are_legible_at_40_tasks(tmp_path, figures):
    rng = np.random.default_rng(0)
    names = [f"MassiveScenarioClassification{i}" for i in range(40)]
    runs = [run_of(m, *(task(n, float(rng.uniform(0.2, 1))) for n in names)) for m in ("bm25", "b", "c")]
    runs[0] = dataclasses.replace(runs[0], paper={names[0]: 0.9})
    results.write_report(tmp_path, runs, {})
    bars = [patch for axis in figures[0].axes for patch in axis.patches]
    assert len(bars) == 120 and {bar.get_x() for bar in bars} == {0.0}
    shown = []
    for axis in figures[0].axes:
        assert axis.get_xlim()[0] == 0
        labels = boxes(figures[0], axis.get_yticklabels())
        shown += [label.get_text() for label in axis.get_yticklabels()]
        assert all(a.y0 >= b.y1 for a, b in itertools.pairwise(labels))
        assert min(box.x0 for box in labels) >= 0 and min(label.get_fontsize() for label in axis.get_yticklabels()) >= 8
    assert shown == names
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ["bm25", "b", "c", "published"]


def test_checkpoints_of_one_run_are_lines_over_their_steps(tmp_path, figures):
    runs = [run_of(f"runs/x/checkpoints/{s}", task("a", s / 1000), task("b", 0.5)) for s in (300, 0, 100)]
    results.write_report(tmp_path, [*runs, run_of("bm25", task("a", 0.5), task("b", 0.7))], {})
    axis = figures[0].axes[0]
    lines = {line.get_label(): line for line in axis.get_lines()}
    assert lines["a (accuracy)"].get_xdata().tolist() == [0, 100, 300]
    assert lines["mean of 2 tasks"].get_ydata().tolist() == [0.25, 0.3, 0.4]
    assert list(lines["bm25, mean"].get_ydata()) == [0.6, 0.6] and axis.get_ylim()[0] == 0


def test_checkpoints_of_two_runs_are_bars(tmp_path, figures):
    models = ("runs/x/checkpoints/100", "runs/y/checkpoints/100")
    results.write_report(tmp_path, [run_of(model, task("a", 0.5)) for model in models], {})
    assert len(figures[0].axes[0].patches) == 2
