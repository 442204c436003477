"""The evaluate command: names of models and tasks in, a table of results out, nothing measured twice."""

import contextlib
import dataclasses
import itertools
import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from e5jax import evaluate, formats, hf, results
from e5jax.decoder import Decoder
from tests import tiny


WORDS = "bread dough yeast oven flour salt water heat time rise knead bake crust crumb slice butter toast jam".split()


def passages(count):
    draw = np.random.default_rng(0)
    return [" ".join(draw.choice(WORDS, 8)) for _ in range(count)]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two model folders with one tokenizer."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = formats.train_tokenizer([*passages(50), "Instruct: Query: the grass is green pass key 0123456789"], 330)
    cfg = tiny.dataclasses.replace(tiny.CFG, vocab_size=330, layers=1, window=64)
    for seed, name in enumerate(("one", "two")):
        weights = nnx.to_pure_dict(nnx.state(Decoder(cfg, jnp.float32, rngs=nnx.Rngs(seed))))
        hf.save(weights, cfg, "float32", folder / name)
        tokenizer.save(folder / name)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A search and a similarity task in files of one's own."""
    folder = tmp_path_factory.mktemp("data")
    texts = passages(20)
    (folder / "kitchen" / "qrels").mkdir(parents=True)
    write = lambda path, rows: path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    write(folder / "kitchen" / "corpus.jsonl", [{"_id": f"d{i}", "title": "", "text": t} for i, t in enumerate(texts)])
    write(folder / "kitchen" / "queries.jsonl", [{"_id": f"q{i}", "text": t[:20]} for i, t in enumerate(texts)])
    rows = "".join(f"q{i}\td{i}\t1\n" for i in range(20))
    (folder / "kitchen" / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + rows)
    (folder / "alike").mkdir()
    rows = [f'"{a}","{b}",{i % 6}' for i, (a, b) in enumerate(itertools.pairwise(texts))]
    (folder / "alike" / "en-test.csv").write_text("\n".join(rows) + "\n")
    return folder


def run(models, data, output, *more, model=("one",), tasks=("kitchen", "alike-en")):
    names = [name if name == "bm25" else str(models / name) for name in model]
    argv = ["--model", *names, "--tasks", *tasks, "--data-dir", str(data), "--output", str(output)]
    return evaluate.main([*argv, *more])


def test_one_model_is_measured_and_written_down(models, data, tmp_path, capsys):
    assert run(models, data, tmp_path / "r") == 0
    stored = json.loads((tmp_path / "r" / "results.json").read_text())
    assert stored["model"] == str(models / "one") and "mteb" in stored["versions"]
    kitchen, alike = stored["results"]
    assert (kitchen["task"], kitchen["metric"], kitchen["n"]) == ("kitchen", "ndcg_at_10", 20)
    assert (alike["task"], alike["metric"], alike["n"]) == ("alike-en", "cosine_spearman", 19)
    assert kitchen["prompt"] == {"query": "", "passage": ""}  # a bare folder asks for none
    assert "kitchen" in (tmp_path / "r" / "results.md").read_text()
    assert not (tmp_path / "r" / "results.png").exists()
    assert "[2/2] alike-en: cosine_spearman" in capsys.readouterr().out


def test_what_is_measured_is_not_measured_again_and_another_model_is_refused(
    models, data, tmp_path, monkeypatch, capsys
):
    assert run(models, data, tmp_path / "r", tasks=["kitchen"]) == 0
    measured, whole = [], evaluate.run_task
    monkeypatch.setattr(evaluate, "run_task", lambda model, task: measured.append(task) or whole(model, task))
    assert run(models, data, tmp_path / "r") == 0
    assert [task.metadata.name for task in measured] == ["alike-en"]
    assert len(results.read_folder(tmp_path / "r").results) == 2
    assert run(models, data, tmp_path / "r", model=["two"]) == 2
    assert run(models, data, tmp_path / "r", "--max-length", "32") == 2
    assert "max_length is 512 there and 32 here" in capsys.readouterr().err


def test_several_models_share_a_table_and_a_picture_and_can_be_compared(models, data, tmp_path, capsys):
    assert run(models, data, tmp_path / "r", model=["one", "two", "bm25"]) == 0
    table = (tmp_path / "r" / "results.md").read_text()
    similarity = next(line for line in table.splitlines() if "alike-en" in line)
    assert "bm25" in table and similarity.endswith("| – |")  # it only searches
    assert (tmp_path / "r" / "results.png").stat().st_size > 5_000
    folders = sorted(path.parent for path in (tmp_path / "r").glob("*/results.json"))
    assert len(folders) == 3
    capsys.readouterr()
    of_models = [str(folder) for folder in folders if "bm25" not in folder.name]
    assert evaluate.main(["--compare", *of_models, "--output", str(tmp_path / "c")]) == 0
    assert "kitchen" in capsys.readouterr().out
    row, _ = json.loads((tmp_path / "c" / "compare.json").read_text())["differences"]
    assert row["interval"][0] <= row["difference"] <= row["interval"][1]


def test_prompts_of_a_file_reach_a_model_that_asks_for_none(models, data, tmp_path):
    (tmp_path / "prompts.json").write_text(json.dumps({"kitchen": "Find the recipe.", "STS": "Same?"}))
    assert run(models, data, tmp_path / "r", "--prompts", str(tmp_path / "prompts.json")) == 0
    kitchen, alike = json.loads((tmp_path / "r" / "results.json").read_text())["results"]
    assert kitchen["prompt"] == {"query": "Instruct: Find the recipe.\nQuery: ", "passage": ""}
    assert set(alike["prompt"].values()) == {"Instruct: Same?\nQuery: "}  # both sides are alike


def test_the_passkey_task_runs_at_each_length_under_another_window(models, data, tmp_path):
    lengths = ["--passkey-lengths", "256", "512"]
    assert run(models, data, tmp_path / "a", *lengths, tasks=["passkey"]) == 0
    assert run(models, data, tmp_path / "b", *lengths, "--window", "0", "--rope-theta", "1e5", tasks=["passkey"]) == 0
    for folder in ("a", "b"):
        rows = json.loads((tmp_path / folder / "results.json").read_text())["results"]
        assert [(row["task"], row["n"]) for row in rows] == [("passkey-256", 50), ("passkey-512", 50)]
        assert (tmp_path / folder / "passkey.png").stat().st_size > 5_000
    assert results.read_folder(tmp_path / "b").identity["rope_theta"] == 1e5
    # Lexical search cannot be asked for it: what it reads has no length.
    assert run(models, data, tmp_path / "c", tasks=["passkey"], model=["bm25"]) == 2


def test_scores_of_other_dims_or_numbers_are_another_evaluation(models, data, tmp_path, capsys):
    assert run(models, data, tmp_path / "whole") == 0
    assert run(models, data, tmp_path / "cut", "--dims", "8", "--quantize", "binary") == 0
    whole, cut = (results.read_folder(tmp_path / name) for name in ("whole", "cut"))
    assert (cut.identity["dims"], cut.identity["quantize"]) == (8, "binary")
    assert whole.find("alike-en").value != cut.find("alike-en").value
    assert "dims 8, quantize binary" in (tmp_path / "cut" / "results.md").read_text()
    assert run(models, data, tmp_path / "whole", "--dims", "8") == 2
    assert run(models, data, tmp_path / "whole", "--quantize", "int8") == 2
    said = capsys.readouterr().err
    assert "dims is None there and 8 here" in said and "quantize is None there and 'int8' here" in said


def test_what_cannot_be_cut_is_refused_before_anything_is_written(models, data, tmp_path, capsys):
    argv = {"more": ("--dims", "1000"), "none": ("--dims", "0"), "bytes": ("--dims", "9", "--quantize", "binary")}
    for name, more in argv.items():
        with contextlib.suppress(SystemExit):
            assert run(models, data, tmp_path / name, *more) == 2
    for more in (("--dims", "8"), ("--quantize", "int8")):
        assert run(models, data, tmp_path / "both", *more, model=["one", "bm25"], tasks=["kitchen"]) == 2
    said = capsys.readouterr().err
    assert "dims 1000: the model's vectors have 24" in said and "bm25 has no vectors" in said
    assert "9 is not a multiple of 8" in said and "must be positive, got 0" in said
    assert list(tmp_path.iterdir()) == []


def test_the_passkey_task_compares_what_is_kept_too(models, data, tmp_path, monkeypatch):
    shapes, whole = [], evaluate.passkey.accuracy
    seen = lambda queries, documents, right: shapes.append(queries.shape[1]) or whole(queries, documents, right)
    monkeypatch.setattr(evaluate.passkey, "accuracy", seen)
    assert run(models, data, tmp_path / "r", "--passkey-lengths", "256", "--dims", "8", tasks=["passkey"]) == 0
    assert shapes == [8]


@pytest.mark.parametrize(
    ("tasks", "said"),
    [(["kichen"], "kitchen"), (["SciFct"], "SciFact"), (["SciFact"], "network"), (["MTEB(eng, v2"], "MTEB(eng, v2)")],
)
def test_a_task_that_cannot_be_run_is_refused_before_any_model_is_opened(tasks, said, data, tmp_path, capsys):
    assert run(tmp_path, data, tmp_path / "r", model=["no model at all"], tasks=tasks) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_a_task_whose_files_changed_is_not_taken_for_measured(models, data, tmp_path, capsys):
    shutil.copytree(data, tmp_path / "data")
    assert run(models, tmp_path / "data", tmp_path / "r", tasks=["alike-en"]) == 0
    (tmp_path / "data" / "alike" / "en-test.csv").write_text('"a","b",1\n"c","d",2\n"e","f",0\n')
    assert run(models, tmp_path / "data", tmp_path / "r", tasks=["alike-en"]) == 2
    assert "measured on other data" in capsys.readouterr().err


def test_a_folder_of_something_else_is_left_alone_whatever_is_asked_for(models, data, tmp_path, capsys):
    (tmp_path / "results.md").write_text("a training run's")
    (tmp_path / "config.json").write_text("{}")
    for more in ({"model": ["one"]}, {"model": ["one", "two"]}):
        assert run(models, data, tmp_path, **more) == 2
        assert "something else than results" in capsys.readouterr().err
    assert (tmp_path / "results.md").read_text() == "a training run's"


def test_the_passkey_task_heeds_the_models_own_prompts(models, data, tmp_path, monkeypatch):
    fixed = formats.Prompts(query="query: ", passage="passage: ")
    whole = evaluate.open_mteb_model

    def with_prompts(*args, **options):
        model = whole(*args, **options)
        return dataclasses.replace(model, encoder=dataclasses.replace(model.encoder, prompts=fixed))

    monkeypatch.setattr(evaluate, "open_mteb_model", with_prompts)
    assert run(models, data, tmp_path / "r", "--passkey-lengths", "256", tasks=["passkey"]) == 0
    (row,) = json.loads((tmp_path / "r" / "results.json").read_text())["results"]
    assert row["prompt"] == {"query": "query: ", "passage": "passage: "}
