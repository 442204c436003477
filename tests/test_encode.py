"""The encode command: corpora to shards of vectors, resumable, shared among processes."""

import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import e5jax
from e5jax import corpus as corpora
from e5jax import encode, formats, hf, vectors
from e5jax.decoder import Decoder
from e5jax.sharding import make_mesh
from tests import tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model folder with its tokenizer."""
    path = tmp_path_factory.mktemp("model")
    tokenizer = formats.train_tokenizer(TEXTS, 400)
    cfg = tiny.dataclasses.replace(tiny.CFG, vocab_size=400, layers=1, window=None)
    hf.save(nnx.to_pure_dict(nnx.state(Decoder(cfg, jnp.float32, rngs=nnx.Rngs(0)))), cfg, "float32", path)
    tokenizer.save(path)
    return path


TEXTS = [f"text number {i} " + "with some words " * (i % 7) for i in range(100)]


@pytest.fixture(scope="module")
def encoder(model):
    return e5jax.Encoder.load(str(model))


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"_id": f"d{i}", "text": t}) + "\n" for i, t in enumerate(TEXTS)))
    return path


def run(model, corpus, output, *more):
    return encode.main(
        ["--model", str(model), "--input", str(corpus), "--output", str(output), "--shard-size", "30", *more]
    )


def test_a_corpus_becomes_vectors_with_ids_in_its_order(model, corpus, encoder, tmp_path, capsys):
    assert run(model, corpus, tmp_path / "v") == 0
    ids, found = vectors.load(tmp_path / "v")
    assert ids == [f"d{i}" for i in range(100)]
    np.testing.assert_allclose(found, encoder.encode(TEXTS), atol=1e-5)
    said = capsys.readouterr().out
    assert "100 of 100 texts" in said and "texts/s" in said and "tokens/s" in said
    index = json.loads((tmp_path / "v" / "index.json").read_text())
    assert [shard["count"] for shard in index["shards"]] == [30, 30, 30, 10]


def test_a_folder_that_is_done_is_left_alone_and_another_job_is_refused(model, corpus, tmp_path, capsys):
    assert run(model, corpus, tmp_path / "v") == 0
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "v").glob("vectors-*")}
    assert run(model, corpus, tmp_path / "v") == 0
    assert before == {p.name: p.stat().st_mtime_ns for p in (tmp_path / "v").glob("vectors-*")}
    assert run(model, corpus, tmp_path / "v", "--instruction", "Another.") == 2
    assert "prompt was '', now 'Instruct: Another." in capsys.readouterr().err
    corpus.write_text('{"text": "changed"}\n')
    assert run(model, corpus, tmp_path / "v") == 2
    assert "fingerprint" in capsys.readouterr().err


def test_processes_share_the_shards_and_the_last_one_writes_the_index(model, corpus, tmp_path, capsys):
    assert run(model, corpus, tmp_path / "one") == 0
    assert run(model, corpus, tmp_path / "two", "--part", "1/2") == 0
    assert "shards of other processes are still to come" in capsys.readouterr().out
    assert not (tmp_path / "two" / "index.json").exists()
    assert run(model, corpus, tmp_path / "two", "--part", "0/2") == 0
    for name in [*(f"vectors-0000{i}.npy" for i in range(4)), "index.json"]:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_a_killed_job_goes_on_to_the_same_bytes(model, corpus, tmp_path):
    assert run(model, corpus, tmp_path / "whole", "--shard-size", "2") == 0
    command = [sys.executable, "-m", "e5jax.encode", "--model", model, "--input", corpus, "--shard-size", "2"]
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    child = subprocess.Popen([*map(str, command), "--output", str(tmp_path / "killed")], env=environment)
    while not vectors.is_done(tmp_path / "killed", 3):
        assert child.poll() is None
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (tmp_path / "killed" / "index.json").exists()
    assert run(model, corpus, tmp_path / "killed", "--shard-size", "2") == 0
    for file in (tmp_path / "whole").iterdir():
        assert file.read_bytes() == (tmp_path / "killed" / file.name).read_bytes(), file.name


def test_standard_input_is_read_and_checked_when_the_job_goes_on(model, tmp_path, monkeypatch, capsys):
    def piped(lines):
        data = io.BytesIO("".join(f"{line}\n" for line in lines).encode())
        monkeypatch.setattr(corpora, "standard_input", lambda: data)

    piped(TEXTS[:40])
    assert run(model, "-", tmp_path / "v") == 0
    assert vectors.load(tmp_path / "v")[1].shape[0] == 40
    piped(TEXTS[1:40])
    assert run(model, "-", tmp_path / "v") == 2
    assert "standard input is not what shard 0" in capsys.readouterr().err


def test_fewer_dimensions_and_bits(model, corpus, encoder, tmp_path, capsys):
    assert run(model, corpus, tmp_path / "v", "--dims", "16", "--quantize", "binary") == 0
    _, bits = vectors.load(tmp_path / "v")
    np.testing.assert_array_equal(np.unpackbits(bits, axis=1), encoder.encode(TEXTS)[:, :16] > 0)
    assert run(model, corpus, tmp_path / "w", "--dims", "12", "--quantize", "binary") == 2
    assert "not a multiple of 8" in capsys.readouterr().err
    assert run(model, corpus, tmp_path / "w", "--dims", "99") == 2
    assert "dims 99: the model's vectors have 24" in capsys.readouterr().err


def test_an_instruction_comes_from_the_prompt_table(model, corpus, encoder, tmp_path, capsys):
    assert run(model, corpus, tmp_path / "v", "--task", "SciFact") == 0
    instruction = "Given a scientific claim, retrieve documents that support or refute the claim"
    np.testing.assert_allclose(vectors.load(tmp_path / "v")[1], encoder.encode(TEXTS, instruction), atol=1e-5)
    assert run(model, corpus, tmp_path / "w", "--task", "SciFct") == 2
    assert "SciFact" in capsys.readouterr().err


def test_an_empty_corpus_has_vectors_of_the_right_width(model, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    assert run(model, tmp_path / "empty.txt", tmp_path / "v") == 0
    ids, found = vectors.load(tmp_path / "v")
    assert ids == [] and found.shape == (0, 24) and found.dtype == np.float32


def test_texts_that_were_cut_are_counted(model, tmp_path, capsys):
    (tmp_path / "long.txt").write_text("short\n" + "long " * 600 + "\n")
    assert run(model, tmp_path / "long.txt", tmp_path / "v") == 0
    assert "1 texts were longer than 512 tokens and cut" in capsys.readouterr().out
    assert json.loads((tmp_path / "v" / "index.json").read_text())["truncated"] == 1


def test_devices_share_the_texts(model, encoder):
    shared = e5jax.Encoder.load(str(model), mesh=make_mesh((4, 2, 1), jax.devices()))
    np.testing.assert_allclose(shared.encode(TEXTS), encoder.encode(TEXTS), atol=1e-5)


def test_a_bad_line_stops_the_job_by_name_and_keeps_what_is_done(model, corpus, tmp_path, capsys):
    with corpus.open("ab") as file:
        file.write(b'{"text": "\xff"}\n')
    assert run(model, corpus, tmp_path / "v") == 2
    assert "corpus.jsonl:101: not UTF-8" in capsys.readouterr().err
    assert vectors.is_done(tmp_path / "v", 2) and not (tmp_path / "v" / "index.json").exists()


def test_a_shorter_input_does_not_cut_a_finished_folder(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(corpora, "standard_input", lambda: io.BytesIO("\n".join(TEXTS).encode()))
    assert run(model, "-", tmp_path / "v") == 0
    monkeypatch.setattr(corpora, "standard_input", lambda: io.BytesIO(b""))
    assert run(model, "-", tmp_path / "v") == 2
    assert "longer before" in capsys.readouterr().err
    assert len(vectors.load(tmp_path / "v")[0]) == 100


def test_a_model_s_own_words_go_in_front_of_the_side_they_are_for(model, corpus, encoder, tmp_path, monkeypatch):
    load, fixed = e5jax.Encoder.load, formats.Prompts(query="query: ", passage="passage: ")
    with_prompts = lambda *args, **options: dataclasses.replace(load(*args, **options), prompts=fixed)
    monkeypatch.setattr(encode.Encoder, "load", with_prompts)
    for side, more in (("passage", []), ("query", ["--side", "query"]), ("query", ["--instruction", "Find."])):
        output = tmp_path / "-".join([side, *more])
        assert run(model, corpus, output, *more) == 0
        expected = encoder.encode([f"{side}: {text}" for text in TEXTS])
        np.testing.assert_allclose(vectors.load(output)[1], expected, atol=1e-5)
