"""G6: our step beside sentence-transformers' on one GPU, both in bfloat16, each in a process of its own, in turns."""

import dataclasses
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks import speed_data
from benchmarks.speed_rows import Row, compared, interleave
from benchmarks.speed_worker import Case, Worker
from e5jax.errors import FailedError


TRIPLES = 128
DTYPE = "bfloat16"
OURS = ((1, True), (2, False), (4, False))  # (chunks, whether layers are recomputed)
MINI_BATCHES = (8, 16, 32, 64)
CHOSEN = ("chunks", "remat", "mini_batch", "attention")  # what a note says of a setting
ATTENTION = ("flash_attention_2", "sdpa")
PAUSE = 0.3  # seconds of rest before a side's turn
SAME_LOSS = 0.02  # relative; bfloat16 rounds differently on the two sides


@dataclasses.dataclass(frozen=True, kw_only=True)
class Beside:
    """What both sides load, and where."""

    sizes: dict[str, int]
    """Of a Mistral: dim, layers, heads, kv_heads, head_dim, hidden, vocabulary."""
    device: str
    """The peer's, as torch names it; ours takes JAX's default."""
    folder: Path
    """Gets the random weights and the logs."""
    rounds: int
    triples: int


def g6(beside: Beside) -> Row:
    """MS-MARCO-like triples; each side at its fastest setting. Raises FailedError where a side has none that runs."""
    beside.folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    sample = [speed_data.marco_lengths(beside.triples, 512, 512, rng) for _ in range(12)]
    triples = speed_data.random_triples(sample[0], beside.sizes["vocabulary"], rng)
    batch = speed_data.write_batch(beside.folder / "batch.json", triples, [np.concatenate(s) for s in sample])
    weights = str(beside.folder / "weights")
    workers = [Worker(f"benchmarks.speed_{side}", beside.folder / f"{side}.log") for side in ("ours", "peer")]
    ours, peer = workers
    try:
        if not (Path(weights) / "adapter").is_dir():
            peer.ask("write_model", folder=weights, sizes=beside.sizes, dtype=DTYPE, seed=0)
        read = dict(folder=weights, batch=batch, dtype=DTYPE)
        mine, my_words, mine_died = _fastest(
            ours, [dict(read, chunks=chunks, remat=remat, widths=(512, 128)) for chunks, remat in OURS]
        )
        theirs, their_words, theirs_died = _fastest(
            peer,
            [
                dict(read, mini_batch=size, budget=None, device=beside.device, attention=attention)
                for attention in ATTENTION
                for size in MINI_BATCHES
            ],
        )
        losses = [case.facts["loss"] for case in (mine, theirs)]
        off = abs(losses[0] / losses[1] - 1)
        if not off <= SAME_LOSS:
            raise FailedError(f"the sides compute different things: losses {losses[0]:.5f} and {losses[1]:.5f}")
        seconds = interleave({"ours": mine.run, "peer": theirs.run}, beside.rounds, PAUSE)
    finally:
        for worker in workers:
            worker.close()
    said = [
        f"both {DTYPE}, ours {my_words}, peer {their_words}",
        f"{triples.tokens:,} tokens, {statistics.median(seconds['ours']):.2f} s",
        f"losses equal within {off:.0e}",
        *mine_died,
        *theirs_died,
    ]
    return compared("G6", "Mistral-7B", triples.tokens, seconds["ours"], seconds["peer"], None, "; ".join(said))


def _fastest(worker: Worker, settings: Sequence[dict]) -> tuple[Case, str, list[str]]:
    """-> (the case of the fastest setting, the setting in words, what others died of); one is in memory at a time."""
    words = lambda setting: ", ".join(f"{k} {v}" for k, v in setting.items() if k in CHOSEN)
    took, died = {}, []
    for i, setting in enumerate(settings):
        try:
            took[i] = worker.case("train", **setting).run()
        except FailedError as error:
            died.append(f"{words(setting)}: {str(error)[:100]}")
        worker.forget()
    if not took:
        raise FailedError("; ".join(died))
    best = settings[min(took, key=took.get)]
    return worker.case("train", **best), words(best), died
