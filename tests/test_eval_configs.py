"""configs/eval: every file loads, its tasks exist, and its published numbers are the paper's."""

import json
from pathlib import Path

import mteb
import numpy as np
import pytest

from e5jax import command, passkey
from e5jax import config as configs


CONFIGS = sorted((Path(__file__).parents[1] / "configs" / "eval").glob("*.py"))
LOCAL = ("stsb-", "xquad-", "tatoeba-", "banking77")


def load(name):
    return command.load_config(str(CONFIGS[0].parent / f"{name}.py"))


def subsets(config):
    """Name of each mteb task that a config measures -> its subsets; those of another kind have none."""
    found = {}
    for name in config.tasks:
        if name == "passkey":
            found |= {f"passkey-{length}": [] for length in config.passkey_lengths}
        elif name.startswith(LOCAL):
            found[name] = []
        else:
            try:
                tasks = [mteb.get_task(name)]
            except KeyError:
                tasks = mteb.get_benchmark(name).tasks
            found |= {task.metadata.name: list(task.hf_subsets) for task in tasks}
    return found


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_config_loads_and_takes_overrides(path):
    config = command.load_config(str(path))
    assert isinstance(config, configs.EvaluateConfig) and config.output == f"runs/eval/{path.stem}"
    assert json.loads(json.dumps(command.to_json(config))) == command.to_json(config)
    argv = ["--config", str(path), "--model", "runs/mine"]
    assert command.parse(argv, "evaluate", configs.EvaluateConfig, needs_file=False).model == ("runs/mine",)
    assert f"--config configs/eval/{path.name}" in path.read_text()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_published_number_is_of_something_measured(path):
    config = command.load_config(str(path))
    measured = subsets(config)
    names = {*measured, *(f"{task}/{subset}" for task, of_task in measured.items() for subset in of_task)}
    assert set(config.paper) <= names and config.paper
    assert all(0 <= percent <= 100 for percent in config.paper.values())


def test_english_mteb_has_all_56_tasks_and_averages_to_the_paper_s_table_1():
    config = load("mteb_en")
    types = {task.metadata.name: task.metadata.type for task in mteb.get_benchmark("MTEB(eng, v1)").tasks}
    assert set(config.paper) == set(types) and len(types) == 56
    of = lambda kind: round(float(np.mean([score for name, score in config.paper.items() if types[name] == kind])), 1)
    assert np.mean(list(config.paper.values())) == pytest.approx(66.6, abs=0.05)
    means = {"Classification": 78.5, "Clustering": 50.3, "Reranking": 60.2, "Retrieval": 56.9, "STS": 84.6}
    assert {kind: of(kind) for kind in means} == means
    assert of("PairClassification") == pytest.approx(88.3, abs=0.11) and of("Summarization") == 31.4


def test_beir_is_its_15_public_sets():
    config = load("beir")
    assert set(config.paper) == {task.metadata.name for task in mteb.get_benchmark("BEIR").tasks}
    assert np.mean(list(config.paper.values())) == pytest.approx(56.9, abs=0.05)
    assert mteb.get_task("MSMARCO").eval_splits == ["dev"]


def test_miracl_averages_to_the_paper_s_16_languages():
    config = load("miracl")
    assert len(config.paper) == 16 and np.mean(list(config.paper.values())) == pytest.approx(62.9, abs=0.05)


def test_tatoeba_and_bucc_have_as_many_languages_as_in_the_paper():
    assert {config: len(subsets(load(config.lower()))[config]) for config in ("Tatoeba", "BUCC")} == {
        "Tatoeba": 112,
        "BUCC": 4,
    }


def test_passkey_has_the_paper_s_lengths_and_first_line():
    config = load("passkey")
    line = dict(zip(passkey.LENGTHS, passkey.PAPER["window 4k, base 10⁴"], strict=True))
    assert config.paper == {f"passkey-{length}": percent for length, percent in line.items()}
    assert config.passkey_lengths == passkey.LENGTHS


def test_local_tasks_are_those_in_the_data_folder(data_dir):
    here = {f"stsb-{path.name[:2]}" for path in (data_dir / "stsb").glob("*-test.csv")}
    here |= {f"xquad-{path.stem}" for path in (data_dir / "xquad").glob("*.json")}
    here |= {f"tatoeba-{path.suffix[1:]}" for path in (data_dir / "tatoeba").glob("*") if path.suffix != ".eng"}
    tasks = load("local").tasks
    assert set(tasks) == here | {"banking77"} and len(set(tasks)) == len(tasks)
