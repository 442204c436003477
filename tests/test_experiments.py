"""A table is run row by row and seed by seed, goes on where it was, and says what it came to and against what."""

import dataclasses
import functools
import json
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from e5jax import command, experiment_table, experiments
from e5jax.config import ExperimentsConfig, TrainConfig
from e5jax.errors import UserError
from e5jax.rows import Row, Table
from tests.test_train import tiny_config


pytestmark = pytest.mark.usefixtures("quickly_compiled")


ROOT = Path(__file__).parents[1]
TABLES = sorted((ROOT / "configs" / "paper").glob("*_*.py"))
TABLES = [path for path in TABLES if path.stem.startswith(("table", "figure"))]
RUNS = sorted({*(ROOT / "configs" / "paper").glob("*.py")} - {*TABLES, ROOT / "configs" / "paper" / "english_mteb.py"})

FILE = """
from e5jax.rows import Row, Table
from tests.test_experiments import tiny


def get_config():
    return Table(
        title="Two rates",
        about="Slow and fast.",
        columns={{"Retr.": ("eval/unseen/ndcg@10",), "MRR": ("eval/unseen/mrr",)}},
        rows=(
            Row(name="slow", train=tiny({cache!r}, 1e-4), paper={{"average": 60.0}}),
            Row(name="fast", train=tiny({cache!r}, 1e-2), against="slow", paper={{"average": 62.0}}),
            Row(name="twice", first=tiny({cache!r}, 1e-4), train=tiny({cache!r}, 1e-4), against="slow"),
            Row(name="huge", unanswered="it does not fit", paper={{"average": 70.0}}),
        ),
    )
"""


def tiny(cache, rate) -> TrainConfig:
    config = tiny_config("nowhere", cache, steps=2)
    return dataclasses.replace(config, optim=dataclasses.replace(config.optim, peak_lr=rate))


@pytest.fixture(scope="module")
def table_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    path = folder / "table_9.py"
    path.write_text(FILE.format(cache=str(folder / "cache")))
    return path


@pytest.fixture(scope="module")
def done(table_file, tmp_path_factory):
    output = tmp_path_factory.mktemp("done") / "out"
    told = experiments.experiments(ExperimentsConfig(table=str(table_file), seeds=(1,), output=str(output)))
    return output, told


def test_every_row_is_trained_and_measured_for_every_seed(done):
    output, told = done
    assert sorted(p.name for p in (output / "scores").iterdir()) == [
        f"{row}-1.json" for row in ("fast", "slow", "twice")
    ]
    rows = {row["row"]: row for row in told["rows"]}
    assert rows["fast"]["seeds"] == [1] and rows["huge"]["seeds"] == []
    config = json.loads((output / "runs" / "fast-1" / "config.json").read_text())
    assert (config["seed"], config["optim"]["peak_lr"]) == (1, 1e-2)
    second = json.loads((output / "runs" / "twice-1" / "config.json").read_text())
    assert second["init_from"].endswith("twice-1-first")
    assert (output / "table.png").read_bytes()[:4] == b"\x89PNG"


def test_scores_are_what_the_runs_measured(done):
    output, _ = done
    last = [json.loads(line) for line in (output / "runs" / "slow-1" / "metrics.jsonl").read_text().splitlines()]
    expected = [row["eval/unseen/ndcg@10"] for row in last if "eval/unseen/ndcg@10" in row][-1]
    scores = json.loads((output / "scores" / "slow-1.json").read_text())["scores"]
    assert scores["eval/unseen/ndcg@10"] == pytest.approx(expected)


def test_what_is_there_is_not_done_again_and_another_seed_is_added(done, table_file, capsys, monkeypatch):
    output, _ = done
    monkeypatch.setattr(experiments, "measure", lambda table, row, seed, output: {"scores": {}, "model": "m"})
    told = experiments.experiments(
        ExperimentsConfig(table=str(table_file), seeds=(1, 2), rows=("fast",), output=str(output))
    )
    said = capsys.readouterr().out
    assert "[1/2] fast, seed 1: there already" in said and "[2/2] fast, seed 2: begins" in said
    assert next(row for row in told["rows"] if row["row"] == "fast")["seeds"] == [1]  # the other has not every task
    (output / "scores" / "fast-2.json").unlink()


def test_an_experiment_that_was_stopped_goes_on_behind_its_last_row(tmp_path, table_file, monkeypatch):
    calls = []

    def measure(table, row, seed, output):
        calls.append((row.name, seed))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return {"scores": {"eval/unseen/ndcg@10": 0.5, "eval/unseen/mrr": 0.4}, "model": "m"}

    monkeypatch.setattr(experiments, "measure", measure)
    words = ["--table", str(table_file), "--seeds", "0", "--output", str(tmp_path / "out")]
    assert experiments.main(words) == 130
    assert experiments.main(words) == 0
    assert calls == [("slow", 0), ("fast", 0), ("fast", 0), ("twice", 0)]


TRAIN = tiny_config("nowhere", "cache")


def scored(values):
    """{row: {seed: scores}} of one task."""
    return {row: {seed: {"a": value} for seed, value in enumerate(of)} for row, of in values.items()}


def table(**rows) -> SimpleNamespace:
    made = [
        Row(name=name, **(fields if "model" in fields else {"train": TRAIN, **fields})) for name, fields in rows.items()
    ]
    return Table(title="T", about="", columns={"A": ("a",)}, average="columns", rows=tuple(made))


def test_differences_are_taken_seed_by_seed_with_student_s_interval():
    base, other = [0.50, 0.60, 0.70], [0.52, 0.61, 0.75]
    told = experiment_table.summary(table(base={}, other={"against": "base"}), scored({"base": base, "other": other}))
    found = told["rows"][1]["differences"]["A"]
    differences = 100 * (np.array(other) - base)
    low, high = stats.t.interval(0.95, 2, loc=differences.mean(), scale=stats.sem(differences))
    assert found["mean"] == pytest.approx(differences.mean())
    assert (found["mean"] - found["half"], found["mean"] + found["half"]) == pytest.approx((low, high))


def test_a_row_is_compared_over_the_seeds_that_both_have():
    told = experiment_table.summary(
        table(base={}, other={"against": "base"}), scored({"base": [0.5, 0.6], "other": [0.5, 0.6, 0.9]})
    )
    assert told["rows"][1]["differences"]["A"] == {"mean": 0.0, "half": 0.0}


def test_an_untrained_model_without_seeds_is_compared_with_every_seed():
    told = experiment_table.summary(
        table(base={"model": "m"}, other={"against": "base"}), scored({"base": [0.5], "other": [0.6, 0.8]})
    )
    assert told["rows"][1]["differences"]["A"]["mean"] == pytest.approx(20.0)


@pytest.mark.parametrize(
    ("others", "paper", "said"),
    [
        ([0.60, 0.61, 0.62], 66.0, "shows"),
        ([0.40, 0.41, 0.42], 66.0, "the other way round"),
        ([0.40, 0.51, 0.62], 66.0, "not told apart"),
        ([0.60], 66.0, "a single seed"),
        ([0.60, 0.61, 0.62], None, ""),
    ],
)
def test_the_verdict_compares_with_the_paper_s_difference(others, paper, said):
    rows = dict(base={"paper": {"average": 64.0}}, other={"against": "base"})
    rows["other"]["paper"] = {} if paper is None else {"average": paper}
    told = experiment_table.summary(table(**rows), scored({"base": [0.5, 0.51, 0.52], "other": others}))
    assert told["rows"][1]["verdict"] == said


def test_an_average_over_tasks_weighs_columns_by_their_tasks():
    columns = {"one": ("a",), "two": ("b", "c")}
    scores = {"row": {0: {"a": 0.9, "b": 0.3, "c": 0.3}}}
    rows = (Row(name="row", model="m"),)
    mean = lambda average: experiment_table.summary(
        Table(title="T", about="", columns=columns, average=average, rows=rows), scores
    )["rows"][0]["columns"]["average"]["mean"]
    assert mean("tasks") == pytest.approx(50.0) and mean("columns") == pytest.approx(60.0)


def test_the_table_for_people_has_a_line_a_row_and_says_why_one_is_unanswered(table_file):
    scores = lambda value: {"eval/unseen/ndcg@10": value, "eval/unseen/mrr": value}
    rows = {name: {seed: scores(at + seed / 10) for seed in (0, 1)} for name, at in (("slow", 0.4), ("fast", 0.6))}
    found = command.load_config(str(table_file))
    text = experiment_table.markdown(experiment_table.summary(found, rows))
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert lines[0] == "| row | seeds | Retr. | MRR | average | paper | paper's difference | here |"
    assert lines[2].startswith("| slow | 2 | ") and lines[2].endswith(" | 60.0 | – | – |")
    assert "| 65.0, **+20.0 ± 0.0** |" in lines[3] and "| +2.0 |" in lines[3]
    assert lines[5] == "| huge | – | – | – | – | 70.0 | – | not answerable at this scale |"
    assert "- huge: it does not fit" in text


def test_a_row_with_a_reference_of_its_own_is_named_beside_the_usual_one():
    against = {"plain": None, "this": "plain", "that": "plain", "that, filtered": "that"}
    rows = tuple(Row(name=name, model="m", against=reference) for name, reference in against.items())
    found = Table(title="T", about="", columns={"A": ("a",)}, rows=rows)
    text = experiment_table.markdown(experiment_table.summary(found, {name: {0: {"a": 0.5}} for name in against}))
    assert "the difference to “plain” (that, filtered: to that) with its 95 % interval" in text


def test_passkeys_are_drawn_over_length(tmp_path):
    columns = {str(n): (f"passkey-{n}",) for n in (256, 512)}
    rows = (Row(name="window 4k", model="m", paper={"256": 100.0, "512": 70.0}),)
    scores = {"window 4k": {0: {"passkey-256": 1.0, "passkey-512": 0.5}}}
    experiment_table.write(tmp_path, Table(title="T", about="", columns=columns, average=None, rows=rows), scores)
    assert (tmp_path / "table.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ((Row(name="a", model="m"), Row(name="a", model="m")), "two rows of one name"),
        ((Row(name="a", model="m", against="b"),), "no other row 'b'; there are a"),
    ],
)
def test_a_table_that_does_not_hang_together_is_refused(rows, said):
    with pytest.raises(UserError, match=said):
        Table(title="T", about="", columns={}, rows=rows)


def test_a_row_that_does_not_say_what_it_measures_is_refused():
    with pytest.raises(UserError, match="row 'a': give it one of train, model, trained_as"):
        Row(name="a", model="m", trained_as="b")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--table", "99"], "no table '99' in configs/paper; there are 1, 2, 4, 5, 7, figure_5"),
        (["--table", "5", "--rows", "w/o sense"], "no row 'w/o sense'"),
        (["--table", "configs/quickstart.py"], "returns TrainConfig, not a Table"),
    ],
)
def test_mistakes_exit_with_2_and_a_sentence(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert experiments.main([*words, "--output", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_damaged_file_of_scores_is_named(tmp_path, table_file):
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / "slow-0.json").write_text('{"scores": 1}')
    with pytest.raises(UserError, match="not the scores of a row"):
        experiments.read_scores(tmp_path, command.load_config(str(table_file)))


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_the_paper_s_tables_have_a_config_for_every_row(path):
    found = command.load_config(str(path))
    assert isinstance(found, Table) and found.rows
    assert all(row.paper for row in found.rows)


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_every_run_of_the_paper_is_in_a_table(path):
    config = command.load_config(str(path))
    assert dataclasses.replace(config, workdir="") in runs_of_all_tables()


@functools.cache
def runs_of_all_tables():
    rows = [row for table in TABLES for row in command.load_config(str(table)).rows]
    return [dataclasses.replace(run, workdir="") for row in rows for run in (row.train, row.first) if run is not None]


def test_the_small_tables_say_of_every_row_of_the_paper_s_how_it_is_answered(monkeypatch, tmp_path):
    monkeypatch.setenv("E5JAX_DATA", str(tmp_path))
    monkeypatch.chdir(ROOT)
    for path in TABLES:
        small = path.parent / "small" / path.name
        if small.exists() and path.stem in ("table_1", "table_5", "table_7"):
            found = command.load_config(str(small))
            assert len(found.rows) >= len(command.load_config(str(path)).rows)
            assert any(not row.unanswered for row in found.rows)


def test_no_config_of_the_paper_has_the_name_of_a_package():
    """It would be imported in its place, or be it."""
    found = [path.stem for folder in ("paper", "paper/small") for path in (ROOT / "configs" / folder).glob("*.py")]
    assert not {*found} & {*metadata.packages_distributions(), *sys.stdlib_module_names}
