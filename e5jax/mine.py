"""Hard negatives for training records: `python -m e5jax.mine --model M --input F --output D`.

records, further passages → a pool of different passages → of a block of records: the best candidates, without those
that are no negatives or score too close to the positive → some of the rest → D, a block at a time
       → negatives.jsonl, which a training run reads as it is; counts, a picture

Shapes: Q records of a block, C candidates of each.
"""

import dataclasses
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from e5jax import command, places
from e5jax.config import MineConfig
from e5jax.job import open_job
from e5jax.mining import folder, negatives, pool, scorers
from e5jax.mining.negatives import CODE, LIMITS
from e5jax.mining.pool import Asked, Data
from e5jax.mining.scorers import CrossEncoder, Found, Search
from e5jax.records import Source


PROG = "python -m e5jax.mine"
VERSION = 1  # of what is mined: raise it when the same job would choose others
# What stands in a job by its content, or changes no row.
ELSEWHERE = ("output", "vectors", "input", "train", "instruction", "corpus", "on_bad_record", "rescore")


def mine(config: MineConfig) -> dict:
    """Mine, or go on, as the config says -> what mined.json says. Raises UserError for what the user can mend."""
    with places.output(config.output) as output:
        return _mine(config, output)


def _mine(config: MineConfig, output: Path) -> dict:
    sources = (*config.train, *(Source(path=path, task=config.instruction) for path in config.input))
    data = pool.read(sources, config.corpus, config.on_bad_record)
    print(f"{len(data.asked):,} records, {len(data.pool.texts):,} different passages", flush=True)
    finder = scorers.open_finder(config.model)
    judge = None if config.rescore is None else CrossEncoder.load(config.rescore)
    job = {name: value for name, value in dataclasses.asdict(config).items() if name not in ELSEWHERE}
    job |= finder.about | data.digests | {"rescore": judge and judge.about, "version": VERSION}
    open_job(output, job, "negatives", "--output")
    if not (output / "mined.json").exists():
        size, count = config.block_size, len(data.asked)
        blocks = [range(first, min(first + size, count)) for first in range(0, count, size)]
        vectors = Path(config.vectors).expanduser() if config.vectors else output / "vectors"
        _blocks(config, data, finder.index(data.pool.texts, data.digests["passages"], vectors), judge, blocks, output)
        facts = {"unusable": data.unusable, "passages": len(data.pool.texts)}
        folder.finish(output, job, facts, folder.join(output, blocks), (judge or finder).unit)
    summary = folder.read(output)
    print(folder.table(summary))
    print(f"{output / 'negatives.jsonl'}: {summary['records']['written']:,} records")
    return summary


def _blocks(
    config: MineConfig, data: Data, search: Search, judge: CrossEncoder | None, blocks: Sequence[range], output: Path
) -> None:
    """Mine the blocks that are not there yet."""
    k = config.ranks[1] + data.most_barred()  # so that none is missing behind those that are barred
    with tqdm(total=len(data.asked), desc="mining", unit=" records", delay=1, disable=None) as progress:
        for block in blocks:
            if folder.block_is_done(output, block):
                progress.update(len(block))
            else:
                folder.write_block(output, block, *_block(config, data, search, judge, block, k, progress.update))


def _block(
    config: MineConfig,
    data: Data,
    search: Search,
    judge: CrossEncoder | None,
    block: range,
    k: int,
    tell: Callable[[int], object],
) -> tuple[list[dict], Counter]:
    """-> (rows of the records, those with too few negatives left out; what became of records and candidates)."""
    asked = [data.asked[number] for number in block]
    barred = [data.barred(one, config.keep_own) for one in asked]
    found = search([(one.record.task, one.record.query) for one in asked], [one.positive for one in asked], k)
    fate_QC = negatives.in_ranks(found.ids_QC, barred, config.ranks)
    rank_Q = negatives.above(fate_QC, found.scores_QC, found.positive_Q, ("before the ranks", "candidate"))
    judged = found if judge is None else _judged(judge, data, asked, found, fate_QC == CODE["candidate"], tell)
    above_Q = negatives.above(fate_QC, judged.scores_QC, judged.positive_Q, ("candidate",))
    limits = {name: value for name in LIMITS if (value := getattr(config, name)) is not None}
    fate_QC = negatives.below_limits(fate_QC, judged.scores_QC, judged.positive_Q, limits)
    own = [_own(one, fate_of) if config.keep_own else [] for one, fate_of in zip(asked, barred, strict=True)]
    wanted = [max(config.negatives - len(texts), 0) for texts in own]
    columns = negatives.pick(fate_QC, judged.scores_QC, wanted, config.choose, [(config.seed, n) for n in block])

    counts = Counter({fate: int((fate_QC == code).sum()) for fate, code in CODE.items() if fate != "absent"})
    counts["above"] = int(above_Q.sum())
    rows = []
    for q, (one, texts, at) in enumerate(zip(asked, own, columns, strict=True)):
        texts = texts + [data.pool.texts[i] for i in found.ids_QC[q, at]]
        scores = [None] * (len(texts) - len(at)) + [_rounded(score) for score in judged.scores_QC[q, at]]
        counts.update({"read": 1, _kind(len(texts), config): 1, "chosen": len(at)})
        counts.update({"own kept": len(texts) - len(at), "own dropped": len(one.own) - (len(texts) - len(at))})
        if len(texts) >= config.min_negatives:
            counts["written"] += 1
            rows.append(_row(one, texts, _rounded(judged.positive_Q[q]), int(rank_Q[q]), scores))
    if judge is None:
        tell(len(block))
    return rows, counts


def _judged(
    judge: CrossEncoder,
    data: Data,
    asked: Sequence[Asked],
    found: Found,
    read_QC: np.ndarray,
    tell: Callable[[int], object],
) -> Found:
    """The same candidates with the cross-encoder's scores of those that it is to read."""
    scores_QC, positive_Q = np.full_like(found.scores_QC, -np.inf), np.zeros_like(found.positive_Q)
    for q, one in enumerate(asked):
        at = np.flatnonzero(read_QC[q])
        passages = [one.record.positive, *(data.pool.texts[i] for i in found.ids_QC[q, at])]
        positive_Q[q], *scores_QC[q, at] = judge.score(one.record.query, passages)
        tell(1)
    return Found(scores_QC=scores_QC, ids_QC=found.ids_QC, positive_Q=positive_Q)


def _own(asked: Asked, fate_of: dict[int, str]) -> list[str]:
    """The negatives that a record brought along, each once, without those that are no negatives."""
    text = dict(zip(reversed(asked.own), reversed(asked.record.negatives), strict=True))
    return [text[number] for number in dict.fromkeys(asked.own) if fate_of[number] == "own negative"]


def _kind(count: int, config: MineConfig) -> str:
    """What mined.json calls a record with so many negatives."""
    if count < config.min_negatives:
        return "left out"
    return "full" if count >= config.negatives else "short" if count else "none"


def _row(asked: Asked, texts: list[str], positive_score: float, positive_rank: int, scores: list) -> dict:
    record = asked.record
    return {
        **({} if record.task is None else {"task": record.task}),
        "query": record.query,
        "positive": record.positive,
        "negatives": texts,
        "positive_score": positive_score,
        "positive_rank": positive_rank,
        "negative_scores": scores,
    }


def _rounded(score: np.floating) -> float:
    return round(float(score), 6)


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    return command.main(mine, MineConfig, PROG, argv, needs_file=False)


if __name__ == "__main__":
    sys.exit(main())
