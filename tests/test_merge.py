"""Merged runs are a run like any other; runs that do not belong together are refused by field."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

import e5jax
from e5jax import checkpoint, merge
from e5jax import train as training
from e5jax.config import LoraConfig, OptimConfig
from e5jax.errors import UserError
from e5jax.merge import MergeConfig
from tests.test_train import tiny_config


pytestmark = pytest.mark.usefixtures("quickly_compiled")


TEXTS = ["why does bread rise", "a chess clock has two faces", "one"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, cache):
    """Two with adapters on one random base, of other ranks and rates; two that trained every weight."""
    folder = tmp_path_factory.mktemp("runs")
    options = {
        "a": dict(lora=LoraConfig(rank=2, alpha=4.0)),
        "b": dict(lora=LoraConfig(rank=3, alpha=3.0), optim=OptimConfig(peak_lr=3e-3, warmup_steps=2)),
        "whole": dict(lora=None),
        "other": dict(lora=None, optim=OptimConfig(peak_lr=3e-3, warmup_steps=2)),
    }
    for name, changes in options.items():
        training.train(tiny_config(folder / name, cache, steps=4, eval=(), **changes))
    return folder


def vectors(path):
    return e5jax.Encoder.load(str(path)).encode(TEXTS)


def merged(runs, tmp_path, *names, **options):
    return merge.merge(MergeConfig(runs=tuple(str(runs / n) for n in names), output=str(tmp_path / "out"), **options))


@pytest.mark.parametrize("method", ["linear", "slerp"])
@pytest.mark.parametrize("name", ["a", "whole"])
def test_a_run_merged_with_itself_is_that_run(runs, tmp_path, name, method):
    np.testing.assert_allclose(
        vectors(merged(runs, tmp_path, name, name, method=method)), vectors(runs / name), atol=2e-6
    )


@pytest.mark.parametrize("names", [("a", "b"), ("whole", "other")])
def test_the_merged_run_lies_between_its_parts(runs, tmp_path, names):
    mean, (one, other) = vectors(merged(runs, tmp_path, *names)), (vectors(runs / name) for name in names)
    apart = np.linalg.norm(one - other, axis=1)
    assert (np.linalg.norm(mean - one, axis=1) < apart).all() and (np.linalg.norm(mean - other, axis=1) < apart).all()


def test_the_weight_of_a_run_moves_the_merged_one_towards_it(runs, tmp_path):
    near = vectors(merged(runs, tmp_path / "1", "a", "b", weights=(99.0, 1.0)))
    far = vectors(merged(runs, tmp_path / "2", "a", "b", weights=(1.0, 99.0)))
    distance = lambda x, name: np.linalg.norm(x - vectors(runs / name))
    assert distance(near, "a") < 0.1 * distance(near, "b") and distance(far, "b") < 0.1 * distance(far, "a")


def test_the_merged_run_is_whole_says_what_it_is_of_and_exports_as_an_adapter(runs, tmp_path, capsys):
    out = merged(runs, tmp_path, "a", "b", method="slerp")
    assert checkpoint.main(["verify", str(out)]) == 0
    told = json.loads((out / "config.json").read_text())
    assert told["lora"]["rank"] == 5 and told["lora"]["alpha"] == 5.0
    assert [part["weight"] for part in told["run"]["merged"]["of"]] == [0.5, 0.5]
    from e5jax import export
    from e5jax.config import ExportConfig

    export.export(ExportConfig(checkpoint=str(out), output=str(tmp_path / "peft"), form="adapter"))
    np.testing.assert_allclose(vectors(tmp_path / "peft"), vectors(out), atol=1e-5)


def test_a_second_stage_starts_from_a_merged_run(runs, tmp_path, cache):
    out = merged(runs, tmp_path, "a", "b", rank=2)
    config = tiny_config(tmp_path / "next", cache, steps=2, eval=(), lora=LoraConfig(rank=2, alpha=2.0))
    training.train(dataclasses.replace(config, init_from=str(out)))
    assert np.abs(vectors(tmp_path / "next") - vectors(out)).max() < 0.3


def test_a_merged_run_is_none_to_go_on_with(runs, tmp_path, cache):
    out = merged(runs, tmp_path, "whole", "whole")
    with pytest.raises(UserError, match=r"was merged of runs, .* --init-from"):
        training.train(tiny_config(out, cache, steps=4, eval=()))


@pytest.mark.parametrize(
    ("names", "options", "said"),
    [
        (("a", "whole"), {}, "lora"),
        (("whole", "other"), {"rank": 4}, "rank is for adapters"),
    ],
)
def test_runs_that_cannot_be_merged_are_refused(runs, tmp_path, names, options, said):
    with pytest.raises(UserError, match=said):
        merged(runs, tmp_path, *names, **options)
    assert not (tmp_path / "out").exists()


def test_a_run_of_another_base_or_prompt_is_refused_by_field(runs, tmp_path):
    shutil.copytree(runs / "a", tmp_path / "c")
    path = tmp_path / "c" / "config.json"
    config = json.loads(path.read_text())
    config["seed"], config["data"]["query_prompt"] = 5, "query: "
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"differ in .*data\.query_prompt, seed"):
        merge.merge(MergeConfig(runs=(str(runs / "a"), str(tmp_path / "c")), output=str(tmp_path / "out")))


def test_what_is_there_already_stays(runs, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="exists: choose another --output"):
        merged(runs, tmp_path, "a", "b")


def test_a_merge_that_breaks_off_leaves_nothing(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(merge.checkpoint.Checkpoints, "save", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        merged(runs, tmp_path, "a", "b")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--runs", "a"], "name two or more"),
        (["--runs", "a", "b", "c", "--method", "slerp"], "slerp is between two runs"),
        (["--runs", "a", "b", "--weights", "1"], "give one for each of the 2 runs"),
        (["--runs", "a", "b", "--weights", "1", "-1"], "weights must be positive"),
    ],
)
def test_mistakes_exit_with_2_and_a_sentence(tmp_path, capsys, words, said):
    with pytest.raises(SystemExit) as exit_:
        merge.main([*words, "--output", str(tmp_path / "out")])
    assert exit_.value.code == 2 and said in capsys.readouterr().err
