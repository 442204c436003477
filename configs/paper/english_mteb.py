"""English MTEB's tasks by type, under the paper's names for its columns (Table 1)."""

from pathlib import Path

from e5jax.command import load_config


# As configs/eval/mteb_en.py lists them, type after type.
COUNTS = {"Class.": 12, "Clust.": 11, "PairClass.": 3, "Rerank": 4, "STS": 10, "Summ.": 1, "Retr.": 15}


def columns() -> dict[str, tuple[str, ...]]:
    tasks = tuple(load_config(str(Path(__file__).parents[1] / "eval" / "mteb_en.py")).paper)
    if len(tasks) != sum(COUNTS.values()):
        raise ValueError(f"mteb_en.py has {len(tasks)} tasks instead of {sum(COUNTS.values())}")
    found, first = {}, 0
    for name, count in COUNTS.items():
        found[name] = tasks[first : first + count]
        first += count
    return found


def paper(line: str) -> dict[str, float]:
    """A line of the paper, Class. Clust. PairClass. Rerank Retr. STS Summ. average, as a row's scores."""
    names = ("Class.", "Clust.", "PairClass.", "Rerank", "Retr.", "STS", "Summ.", "average")
    return dict(zip(names, map(float, line.split()), strict=True))
