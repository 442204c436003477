"""Whatever stands in the files that people bring: loading works or ends in a sentence, soon, and stays in its folder.

Two thousand damaged folders over every loader: bytes flipped, cut, repeated; files gone, empty, made folders or links;
in JSON any value replaced by any other.
"""

import dataclasses
import json
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import e5jax
from e5jax import checkpoint, corpus, export, hf, local_tasks, records, results, vectors
from e5jax import train as training
from e5jax.config import ExportConfig
from e5jax.decoder import Decoder
from e5jax.errors import FailedError, UserError
from e5jax.records import Source
from e5jax.results import TaskResult
from e5jax.sample import LEDGER
from e5jax.synthetic import budget, entries
from e5jax.synthetic.ledger import Ledger
from tests import tiny_bert
from tests.test_train import TINY, LoraConfig, tiny_config


pytestmark = pytest.mark.faults
LIMIT_S = 30
VALUES = [None, True, -1, 0, 1, 0.5, 1e308, float("nan"), 10**30, 2**31, "", "a", "../../outside", "/etc", "\udc80"]
VALUES += [[], {}, [1], {"a": 1}, "a" * 10_000, [[]] * 3, "safetensors", "float32"]


def deep(rng):
    return b"[" * rng.choice([50, 100_000])


def flip(content, rng):
    content = bytearray(content)
    for _ in range(rng.choice([1, 1, 3, 20]) if content else 0):
        content[rng.randrange(min(len(content), rng.choice([200, 10**9])))] ^= 1 << rng.randrange(8)
    return bytes(content)


def cut(content, rng):
    return content[: rng.randrange(len(content) + 1)]


def insert(content, rng):
    at = rng.randrange(len(content) + 1)
    noise = rng.choice([rng.randbytes(8), b"\0", b"\n\n", b'"', deep(rng), b"\xff\xfe", "\u2028".encode(), b"NaN,"])
    return content[:at] + noise + content[at:]


def repeat(content, rng):
    a, b = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    return content[:b] + content[a:b] + content[b:]


def other_json(content, rng):
    """One value of a JSON document, or of one of its lines, is another one, is gone or is new."""
    try:
        lines, which = [json.loads(content)], 0
    except ValueError:
        lines = content.split(b"\n")
        which = rng.randrange(len(lines))
        try:
            lines[which] = json.loads(lines[which])
        except ValueError:
            return flip(content, rng)
    holder, key = lines, which
    while isinstance(holder[key], dict | list) and holder[key] and rng.random() < 0.8:
        holder, key = (
            holder[key],
            rng.choice([*(holder[key] if isinstance(holder[key], dict) else range(len(holder[key])))]),
        )
    action = rng.randrange(6)
    if action == 0 and holder is not lines:
        del holder[key]
    elif action == 1 and isinstance(holder, dict):
        holder[rng.choice(["auto_map", "../x", "extra"])] = rng.choice(VALUES)
    else:
        holder[key] = rng.choice(VALUES)
    texts = (line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
    return b"\n".join(texts)


BYTES = [flip, cut, insert, repeat, other_json, other_json, other_json, other_json]


def damage(folder: Path, rng: random.Random) -> None:
    """One to three damages somewhere in the folder."""
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        if not files:
            return
        small = [path for path in files if path.stat().st_size < 100_000]
        path = rng.choice(small if small and rng.random() < 0.8 else files)
        kind = rng.randrange(20)
        if kind == 0:
            path.unlink()
        elif kind == 1:
            path.write_bytes(b"")
        elif kind == 2:
            path.unlink()
            path.mkdir()
        elif kind == 3:
            path.unlink()
            path.symlink_to(rng.choice(["/nowhere", path.name, "/"]))
        elif kind == 4:
            path.rename(path.with_name(rng.choice(["x", "7", path.name + ".gz"])))
        else:
            path.write_bytes(rng.choice(BYTES)(path.read_bytes(), rng))


# What is there to be loaded


def decoder(folder):
    hf.save(nnx.to_pure_dict(nnx.state(Decoder(TINY, jnp.float32, rngs=nnx.Rngs(0)))), TINY, "float32", folder)
    tiny_bert.save_tokenizer("bert", folder)


def bert(folder):
    tiny_bert.folder(folder, dataclasses.replace(tiny_bert.BERT, layers=1))


def run(folder):
    config = tiny_config(folder / "run", folder / "cache", steps=1, eval=(), lora=LoraConfig(rank=2, alpha=4.0))
    training.train(config)
    shutil.rmtree(folder / "cache")
    shutil.rmtree(folder / "run" / "tensorboard")


def adapter(folder):
    run(folder.parent / "of-adapter")
    made = ExportConfig(checkpoint=str(folder.parent / "of-adapter" / "run"), output=str(folder / "a"), license="mit")
    export.export(dataclasses.replace(made, form="adapter"))


def merged(folder):
    run(folder.parent / "of-merged")
    made = ExportConfig(checkpoint=str(folder.parent / "of-merged" / "run"), output=str(folder / "m"), license="mit")
    export.export(dataclasses.replace(made, form="merged"))


RECORDS = [{"task": "t", "query": f"q {i}", "positive": "p", "negatives": ["n", "m"]} for i in range(8)]


def jsonl(folder):
    (folder / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))


def parquet(folder):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RECORDS), folder / "a.parquet")


def squad(folder):
    paragraphs = [{"context": "c", "qas": [{"id": "1", "question": "q?"}, {"id": "2", "question": "r?"}]}]
    (folder / "a.json").write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))


def bitext(folder):
    (folder / "a.en").write_text("one\ntwo\n")
    (folder / "a.de").write_text("eins\nzwei\n")


def beir(folder):
    (folder / "corpus.jsonl").write_text('{"_id": "a", "title": "t", "text": "x"}\n{"_id": "b", "text": "y"}\n')
    (folder / "queries.jsonl").write_text('{"_id": "q", "text": "x?"}\n')
    (folder / "qrels").mkdir()
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\ta\t1\n")


def texts(folder):
    (folder / "a.jsonl").write_text('{"_id": "a", "title": "t", "text": "x"}\n{"_id": "b", "text": "y"}\n')


def encoded(folder):
    vectors.open_job(folder, {"dims": 4, "dtype": "float32"})
    for shard in range(2):
        vectors.write_shard(folder, shard, [1, 2], np.eye(4, dtype=np.float32)[:2], {"tokens": 3, "truncated": 0})
    vectors.write_index(folder, 2)


def measured(folder):
    found = results.open_folder(folder / "r", "m", {"digest": "d"}, {"t": 50.0})
    one = TaskResult(
        task="t", metric="f1", value=0.5, n=2, subsets={"de": 0.5}, prompt={}, data="d", examples={"score": np.ones(2)}
    )
    results.add(folder / "r", found, one)


def ledger(folder):
    shutil.copytree(LEDGER, folder / "ledger")
    path = next((folder / "ledger").glob("answers-*.jsonl"))
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:10]))


def prices(folder):
    (folder / "p.json").write_text('{"m": {"prompt": 1.0, "answer": 2.0}}')


# Loading it


def opened(folder):
    encoder = e5jax.Encoder.load(str(folder), max_length=16)
    encoder.tokenizer.encode(["a text"], 16)


def read(name, **options):
    def load(folder):
        found = [*records.read(Source(path=str(folder / name), **{key: str(folder / n) for key, n in options.items()}))]
        if bad := [(where, record.reason) for where, record in found if isinstance(record, records.BadRecord)]:
            raise UserError(f"{bad[0][0]}: {bad[0][1]}")

    return load


def resumed(folder):
    checkpoint.main(["verify", str(folder / "run")])
    opened(folder / "run")


def spent(folder):
    with Ledger(folder / "ledger") as found:
        len(found)
    for entry in entries.read(folder / "ledger"):
        entry["key"]


def tasks(folder):
    for task in local_tasks.discover(folder).values():
        local_tasks.load(task)


def searched(folder):
    return [
        *corpus.shards(
            corpus.Corpus(path=str(folder / "a.jsonl"), field=None, id_field=None, split="train"), 2, lambda _: True
        )
    ]


@dataclasses.dataclass(frozen=True)
class Loader:
    make: Callable
    load: Callable
    times: int


LOADERS = {
    "a decoder's folder": Loader(decoder, opened, 350),
    "an encoder's folder": Loader(bert, opened, 250),
    "a sentence-transformers folder": Loader(merged, lambda folder: opened(folder / "m"), 150),
    "an adapter": Loader(adapter, lambda folder: opened(folder / "a"), 150),
    "a run": Loader(run, resumed, 150),
    "records in JSONL": Loader(jsonl, read("a.jsonl"), 200),
    "records in Parquet": Loader(parquet, read("a.parquet"), 100),
    "SQuAD": Loader(squad, read("a.json"), 100),
    "bitext": Loader(bitext, read("a.en", positives="a.de"), 50),
    "an evaluation set": Loader(beir, tasks, 150),
    "a corpus": Loader(texts, searched, 100),
    "vectors": Loader(encoded, lambda folder: vectors.load(folder), 100),
    "results": Loader(measured, lambda folder: results.read_folder(folder / "r"), 100),
    "a ledger": Loader(ledger, spent, 100),
    "prices": Loader(prices, lambda folder: budget.read_prices(str(folder / "p.json")), 50),
}


@pytest.fixture
def limited():
    """A load that hangs is an error of its own."""

    def late(*_):
        raise AssertionError(f"still loading after {LIMIT_S} s")

    before = signal.signal(signal.SIGALRM, late)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def test_there_are_two_thousand_of_them():
    assert sum(loader.times for loader in LOADERS.values()) >= 2000


@pytest.mark.parametrize("name", LOADERS)
def test_a_damaged_one_is_read_or_refused_in_a_sentence(name, tmp_path, limited, capsys):
    loader = LOADERS[name]
    whole, damaged = tmp_path / "whole", tmp_path / "damaged"
    whole.mkdir()
    loader.make(whole)
    loader.load(whole)
    outside = sorted(tmp_path.iterdir())
    refused = 0

    @settings(
        max_examples=loader.times, deadline=None, database=None, derandomize=True, suppress_health_check=[*HealthCheck]
    )
    @given(st.integers(0, 2**32))
    def all_of_them(seed):
        nonlocal refused
        shutil.copytree(whole, damaged)
        try:
            damage(damaged, random.Random(seed))
            signal.alarm(LIMIT_S)
            loader.load(damaged)
        except (UserError, FailedError) as error:
            refused += 1
            assert 10 < len(str(error)) < 2100, error
        finally:
            signal.alarm(0)
            shutil.rmtree(damaged)
            capsys.readouterr()
        assert sorted(tmp_path.iterdir()) == outside

    all_of_them()
    jax.clear_caches()
    with capsys.disabled():
        print(f"\n{name}: {refused} of {loader.times} refused")
    assert refused > 0
