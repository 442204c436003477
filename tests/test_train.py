"""The command: a run learns, resumes bit for bit, refuses what it should, and loses nothing."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import e5jax
from e5jax import heldout, loop, manifest, schedule
from e5jax import train as training
from e5jax import workdir as workdirs
from e5jax.config import (
    DataConfig,
    EvalSet,
    FromScratch,
    LoraConfig,
    OptimConfig,
    PackingConfig,
    Pretrained,
    TrainConfig,
)
from e5jax.contrast import Contrast
from e5jax.decoder import DecoderConfig
from e5jax.errors import UserError
from e5jax.formats import PAPER
from e5jax.logbook import cut_back, read_rows
from e5jax.records import Source
from e5jax.schedule import Schedule
from tests.sample import HELDOUT, TRAIN


pytestmark = pytest.mark.usefixtures("quickly_compiled")


TINY = DecoderConfig(
    family="mistral",
    vocab_size=512,
    dim=32,
    hidden=48,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=8,
    window=16,
    rope_theta=1e4,
    norm_eps=1e-5,
    qk_norm=False,
)


ONE_LAYER = FromScratch(architecture=dataclasses.replace(TINY, layers=1))
"""For a test that starts many processes: traced in less time."""


def tiny_config(workdir, cache, **changes) -> TrainConfig:
    config = TrainConfig(
        workdir=str(workdir),
        steps=6,
        batch_size=8,
        model=FromScratch(architecture=TINY),
        lora=None,
        data=DataConfig(train=(Source(path=TRAIN, rows=":100"),), max_length=48, cache=str(cache)),
        eval=(EvalSet(name="unseen", sources=(Source(path=HELDOUT, rows=":20"),)),),
        packing=PackingConfig(widths=(48,), chunks=1, kept=1),  # a second chunk is traced too, and to find a plan
        remat=False,
        optim=OptimConfig(peak_lr=1e-3, warmup_steps=2),
        eval_every=3,
        checkpoint_every=2,
    )
    return dataclasses.replace(config, **changes)


def losses(workdir):
    return {row["step"]: row["loss"] for row in read_rows(Path(workdir) / "metrics.jsonl") if "loss" in row}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cache):
    """A run of six steps, every weight trained."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    training.train(tiny_config(workdir, cache))
    return workdir


@pytest.fixture(scope="module")
def finished_lora(tmp_path_factory, cache):
    """A run of six steps that trains adapters (with dropout) on a random base."""
    workdir = tmp_path_factory.mktemp("finished_lora") / "run"
    training.train(tiny_config(workdir, cache, lora=LoraConfig(rank=2, alpha=4.0)))
    return workdir


def test_a_run_writes_what_the_design_promises(finished):
    config = json.loads((finished / "config.json").read_text())
    assert config["steps"] == 6 and config["run"]["architecture"]["dim"] == 32
    rows = read_rows(finished / "metrics.jsonl")
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in rows if "eval/ndcg@10" in row] == [0, 3, 6]
    assert rows[0]["step"] == 0 and "eval/ndcg@10" in rows[0]
    assert all(row["tokens_per_second"] > 0 for row in rows if "loss" in row)
    assert (finished / "curves.png").stat().st_size > 10_000
    assert "| unseen | 20 |" in (finished / "results.md").read_text()
    assert list((finished / "tensorboard").glob("events*"))
    assert sorted(p.name for p in (finished / "checkpoints").iterdir() if p.name.isdigit()) == ["4", "6"]


def test_training_lowers_the_loss(finished, tmp_path, cache):
    training.train(tiny_config(tmp_path / "run", cache, steps=30, eval=(), checkpoint_every=100))
    seen = losses(tmp_path / "run")
    assert np.mean([seen[s] for s in range(26, 31)]) < 0.9 * np.mean([seen[s] for s in range(1, 6)])


CHILD = """
import sys, tests.test_train as t
from e5jax import train
from e5jax.config import LoraConfig
train.train(t.tiny_config(sys.argv[1], sys.argv[2], lora=LoraConfig(rank=2, alpha=4.0)))
"""


def test_a_killed_run_goes_on_bit_for_bit(finished_lora, tmp_path, cache):
    workdir = tmp_path / "run"
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"}
    root = Path(__file__).parents[1]
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(workdir), str(cache)], cwd=root, env=environment)
    deadline = time.monotonic() + 240
    while not (workdir / "checkpoints" / "4").exists() and child.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    if not (workdir / "checkpoints" / "6").exists():
        assert 6 not in losses(workdir) or child.returncode == -signal.SIGKILL
    training.train(tiny_config(workdir, cache, lora=LoraConfig(rank=2, alpha=4.0)))
    assert losses(workdir) == losses(finished_lora)
    steps = [row["step"] for row in read_rows(workdir / "metrics.jsonl") if "loss" in row]
    assert steps == [1, 2, 3, 4, 5, 6]
    ours, theirs = (e5jax.Encoder.load(str(w)).encode(["one", "two"]) for w in (workdir, finished_lora))
    np.testing.assert_array_equal(ours, theirs)


def test_a_run_whose_newest_checkpoint_was_changed_goes_on_from_the_one_before(finished, tmp_path, cache, caplog):
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    path = max((workdir / "checkpoints" / "6" / "params").rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    training.train(tiny_config(workdir, cache))
    assert f"step 6 is not used: {path.relative_to(workdir / 'checkpoints' / '6')} was changed" in caplog.text
    assert losses(workdir) == losses(finished)
    assert not manifest.problems(workdir / "checkpoints" / "6")


def test_stopping_after_four_steps_and_going_on_gives_the_same_run(finished, tmp_path, cache, monkeypatch):
    def stop_after_four(self, row):
        if row["step"] == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr("e5jax.loop.Progress.step", stop_after_four)
        with pytest.raises(SystemExit) as stopped:
            training.train(tiny_config(tmp_path / "run", cache))
    assert stopped.value.code == 128 + signal.SIGTERM
    assert max(losses(tmp_path / "run")) < 6
    training.train(tiny_config(tmp_path / "run", cache))
    assert losses(tmp_path / "run") == losses(finished)


def test_metrics_are_cut_back_to_the_restored_step_and_a_torn_line_goes(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": s, "loss": 1.0}) + "\n" for s in (1, 2, 3)) + '{"step": 4, "lo')
    cut_back(path, 2)
    assert [row["step"] for row in read_rows(path)] == [1, 2]


def test_the_same_losses_on_every_mesh_in_one_chunk_or_two(tmp_path, cache, finished):
    reference = losses(finished)
    for number, (mesh, chunks) in enumerate({(1, 8, 1): 1, (2, 2, 2): 2}.items()):  # (8, 1, 1) is the default
        workdir, packing = tmp_path / str(number), PackingConfig(widths=(48,), chunks=chunks, kept=1)
        training.train(tiny_config(workdir, cache, mesh=mesh, packing=packing, eval=()))
        ours = losses(workdir)
        np.testing.assert_allclose([ours[1]], [reference[1]], rtol=1e-5)
        np.testing.assert_allclose(list(ours.values()), list(reference.values()), rtol=1e-3)


def test_a_run_resumes_on_another_mesh(tmp_path, cache, finished):
    shutil.copytree(finished, tmp_path / "run")
    training.train(tiny_config(tmp_path / "run", cache, steps=8, extend=True, mesh=(2, 2, 2)))
    assert sorted(losses(tmp_path / "run")) == list(range(1, 9))


def test_a_finished_run_runs_no_further_step_and_compiles_none(finished, cache, monkeypatch, capsys):
    before = (finished / "metrics.jsonl").read_bytes()
    monkeypatch.setattr(training, "plan_step", None)
    last = training.train(tiny_config(finished, cache))
    assert (finished / "metrics.jsonl").read_bytes() == before
    assert last == {key: value for key, value in read_rows(finished / "metrics.jsonl")[-1].items() if key != "step"}
    said = capsys.readouterr().out
    assert "all 6 steps are done" in said and "| unseen | 20 |" in said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 1}, "seed is 0 there and 1 here"),
        ({"steps": 8}, "--extend allows more steps"),
        ({"batch_size": 16}, "batch_size is 8 there and 16 here"),
        ({"optim": OptimConfig(peak_lr=2e-3, warmup_steps=2)}, "optim.peak_lr is 0.001 there"),
        ({"lora": LoraConfig()}, "lora"),
    ],
)
def test_another_run_s_workdir_is_refused_by_field(finished, cache, change, said):
    before = sorted(p for p in finished.rglob("*"))
    with pytest.raises(UserError, match="holds another run") as refused:
        training.train(tiny_config(finished, cache, **change))
    assert said in str(refused.value)
    assert sorted(p for p in finished.rglob("*")) == before


def test_a_run_of_a_version_without_today_s_switches_goes_on_with_them_off(tmp_path, cache, finished):
    shutil.copytree(finished, tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    config = json.loads(path.read_text())
    del config["contrast"], config["skip_non_finite"]
    for source in config["data"]["train"]:
        del source["labels"], source["own_negatives_only"], source["task_of_type"]
    path.write_text(json.dumps(config))
    training.train(tiny_config(tmp_path / "run", cache))
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"contrast\.query_query is False there and True here"):
        training.train(tiny_config(tmp_path / "run", cache, contrast=Contrast(query_query=True)))


def test_changed_training_data_is_refused(tmp_path, cache):
    records = [json.loads(line) for line in Path(TRAIN).read_text(encoding="utf-8").splitlines()[:40]]
    path = tmp_path / "train.jsonl"
    write = lambda: path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    write()
    data = DataConfig(train=(Source(path=str(path)),), max_length=48, cache=str(cache))
    changes = {"data": data, "eval": (), "steps": 2}
    training.train(tiny_config(tmp_path / "run", cache, **changes))
    records[7]["positive"] = "Something else."
    write()
    with pytest.raises(UserError, match="changed since"):
        training.train(tiny_config(tmp_path / "run", cache, **changes))


def test_a_folder_that_is_no_run_is_left_alone(tmp_path, cache):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="not empty and holds no run"):
        training.train(tiny_config(tmp_path, cache))
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_loss_that_is_not_finite_stops_the_run_and_is_never_saved(tmp_path, cache, monkeypatch, capsys):
    real = loop.jax.device_get
    calls = iter(range(100))
    broken = lambda tree: {**real(tree), "loss": float("nan")} if next(calls) == 2 else real(tree)
    monkeypatch.setattr(loop.jax, "device_get", broken)
    with pytest.raises(loop.NonFiniteLossError, match="step 3: loss nan"):
        training.train(tiny_config(tmp_path / "run", cache))
    saved = [int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir() if p.name.isdigit()]
    assert max(saved) == 2
    report = json.loads((tmp_path / "run" / "nonfinite-3.json").read_text())
    assert report["step"] == 3 and len(report["examples"]) == 8
    assert all(where.startswith(TRAIN + ":") for where in report["examples"])


def with_broken_steps(monkeypatch, *numbers):
    """The base is not a number in these steps, which then may change counts alone."""
    real, calls = training.plan_step, iter(range(1, 100))

    def broken(*arguments):
        planned = real(*arguments)

        def step(teacher, state, frozen, batch):
            if next(calls) not in numbers:
                return planned.step(teacher, state, frozen, batch)
            before = jax.device_get(state)
            state, metrics = planned.step(teacher, state, jax.tree.map(lambda x: x * jnp.nan, frozen), batch)
            for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(state), strict=True):
                np.testing.assert_array_equal(new, old if np.issubdtype(old.dtype, np.floating) else old + 1)
            return state, metrics

        return dataclasses.replace(planned, step=step)

    monkeypatch.setattr(training, "plan_step", broken)


def test_steps_that_are_not_finite_are_left_out_if_so_many_in_a_row_are_allowed(tmp_path, cache, monkeypatch, capsys):
    settings = dict(lora=LoraConfig(rank=2, alpha=4.0), eval=(), checkpoint_every=100)
    with monkeypatch.context() as patch:
        with_broken_steps(patch, 2, 4, 5)
        training.train(tiny_config(tmp_path / "run", cache, skip_non_finite=2, **settings))
    assert list(losses(tmp_path / "run")) == [1, 3, 6] and "step 5: loss nan" in capsys.readouterr().out
    examples = [json.loads((tmp_path / "run" / f"nonfinite-{step}.json").read_text())["examples"] for step in (2, 4)]
    assert len(examples[0]) == 8 and examples[0] != examples[1]
    assert np.isfinite(e5jax.Encoder.load(str(tmp_path / "run")).encode(["a text"])).all()
    with monkeypatch.context() as patch:
        with_broken_steps(patch, 2, 3)
        with pytest.raises(loop.NonFiniteLossError, match="step 3"):
            training.train(tiny_config(tmp_path / "again", cache, skip_non_finite=1, **settings))


def test_the_base_s_bytes_are_unchanged_by_training_adapters(tmp_path, finished, cache):
    base = e5jax.Encoder.load(str(finished)).encode(["a text"])
    config = tiny_config(
        tmp_path / "run",
        cache,
        model=Pretrained(base=str(finished), dtype="float32"),
        lora=LoraConfig(rank=2, alpha=4.0),
    )
    training.train(config)
    np.testing.assert_array_equal(e5jax.Encoder.load(str(finished)).encode(["a text"]), base)
    assert not np.array_equal(e5jax.Encoder.load(str(tmp_path / "run")).encode(["a text"]), base)
    first = read_rows(tmp_path / "run" / "metrics.jsonl")[0]["eval/ndcg@10"]
    last = read_rows(finished / "metrics.jsonl")[-1]["eval/ndcg@10"]
    assert first == pytest.approx(last, abs=1e-6)  # fresh adapters change nothing: it starts where the base ended


def test_a_run_starts_from_another_run_s_adapters(tmp_path, finished_lora, cache):
    config = tiny_config(
        tmp_path / "run", cache, lora=LoraConfig(rank=2, alpha=4.0), init_from=str(finished_lora), seed=0
    )
    training.train(config)
    first = read_rows(tmp_path / "run" / "metrics.jsonl")[0]["eval/ndcg@10"]
    assert first == pytest.approx(read_rows(finished_lora / "metrics.jsonl")[-1]["eval/ndcg@10"], abs=1e-6)


@pytest.mark.parametrize("run", ["finished", "finished_lora"])
def test_the_encoder_gives_what_was_evaluated(run, request):
    workdir = request.getfixturevalue(run)
    encoder = e5jax.Encoder.load(str(workdir))
    pairs = heldout.load("x", (Source(path=HELDOUT, rows=":20"),), (), PAPER, "stop")
    passages = encoder.encode(pairs.passages)
    queries = encoder.encode(pairs.instructed)
    metrics = heldout.ranking_metrics(queries @ passages.T, pairs.relevant)
    last = read_rows(workdir / "metrics.jsonl")[-1]
    assert metrics["ndcg@10"] == pytest.approx(last["eval/unseen/ndcg@10"], abs=1e-6)
    one_step = e5jax.Encoder.load(str(workdir / "checkpoints" / "6"))
    np.testing.assert_array_equal(one_step.encode(pairs.passages), passages)


def test_a_profile_is_written_for_the_steps_asked_for(tmp_path, cache):
    training.train(tiny_config(tmp_path / "run", cache, steps=4, eval=(), profile_steps="2:3"))
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))


def test_one_step_is_compiled_for_a_whole_run(tmp_path, cache, monkeypatch):
    made = []
    real = jax.jit
    monkeypatch.setattr(training.jax, "jit", lambda *a, **k: made.append(real(*a, **k)) or made[-1])
    training.train(tiny_config(tmp_path / "run", cache, eval=()))
    steps = [f for f in made if f.__wrapped__.__name__ == "step"]
    assert len(steps) == 1  # and it runs ahead-of-time compiled, which compiles no more


@pytest.mark.parametrize(
    ("change", "said"),
    [({"seed": 1}, "seed"), ({"lora": LoraConfig(rank=3)}, "lora"), ({"lora": None}, "lora")],
)
def test_adapters_of_another_model_are_refused(tmp_path, finished_lora, cache, change, said):
    config = tiny_config(tmp_path / "run", cache, lora=LoraConfig(rank=2, alpha=4.0), init_from=str(finished_lora))
    with pytest.raises(UserError, match=f"init_from .*{said}"):
        training.train(dataclasses.replace(config, **change))


def test_packing_and_remat_may_change_when_a_run_goes_on(tmp_path, cache, finished):
    shutil.copytree(finished, tmp_path / "run")
    two = PackingConfig(widths=(48,), chunks=2, kept=2)
    training.train(tiny_config(tmp_path / "run", cache, steps=8, extend=True, remat=True, packing=two))
    assert sorted(losses(tmp_path / "run")) == [1, 2, 3, 4, 5, 6, 7, 8]
    stored = json.loads((tmp_path / "run" / "config.json").read_text())["run"]["schedule"]
    assert stored == {"chunks": 2, "kept": 2, "remat": True}


def test_the_schedule_follows_from_the_memory_and_stays_with_the_run(tmp_path, cache, monkeypatch):
    config = tiny_config(tmp_path / "run", cache, steps=4, eval=(), packing=PackingConfig(widths=(48,)))
    monkeypatch.setattr(schedule, "CHUNKS", (128, 96))
    small = dataclasses.replace(config.packing, memory_gb=1.3e-3)
    training.train(dataclasses.replace(config, packing=small))
    stored = json.loads((tmp_path / "run" / "config.json").read_text())["run"]
    assert stored["schedule"]["chunks"] > 1 and stored["shape"]["chunks"] > 1
    monkeypatch.setattr(schedule, "best", lambda work, wanted, limit: Schedule(**dataclasses.asdict(wanted)))
    training.train(dataclasses.replace(config, packing=small, steps=6, extend=True))
    assert json.loads((tmp_path / "run" / "config.json").read_text())["run"]["schedule"] == stored["schedule"]

    roomy = dataclasses.replace(config, workdir=str(tmp_path / "roomy"))
    monkeypatch.undo()
    training.train(roomy)
    assert json.loads((tmp_path / "roomy" / "config.json").read_text())["run"]["schedule"]["chunks"] == 1
    same = pytest.approx(losses(tmp_path / "roomy")[1], rel=1e-5)
    assert losses(tmp_path / "run")[1] == same

    with pytest.raises(UserError, match="the step does not fit"):
        training.train(dataclasses.replace(roomy, workdir=str(tmp_path / "no"), packing=PackingConfig(memory_gb=1e-4)))


def test_a_workdir_of_an_unknown_kind_is_refused_before_anything_is_done(cache):
    with pytest.raises(UserError, match="gs://"):
        training.train(tiny_config("ftp://host/run", cache))


def test_a_run_killed_while_its_folder_was_made_has_not_begun(tmp_path, cache, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("e5jax.workdir.write_config", killed)
        with pytest.raises(KeyboardInterrupt):
            training.train(tiny_config(tmp_path / "run", cache, steps=1, eval=()))
    assert list(tmp_path.iterdir()) == []


def test_a_run_of_another_version_is_refused_by_name(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"run": {"e5jax": "0.0.1", "decoder": {}}}))
    with pytest.raises(UserError, match=r"is a run of e5jax 0\.0\.1: open it with that version"):
        workdirs.read_config(tmp_path)
