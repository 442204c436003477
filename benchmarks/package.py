"""A ledger of half a million answers, packaged: `python -m benchmarks.package --folder D`.

The ledger is made up, in the manner of the paper's mix: real sentences of eight languages ($E5JAX_DATA: XQuAD and
Tatoeba) in documents of the lengths that the prompts ask for, with a share of everything that filters are for. It is
written once, and every filter is on. Printed: seconds of each part, and the most memory that all processes together
held.
"""

import json
import os
import random
import re
import sys
import threading
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

import tyro

from benchmarks import measured
from e5jax.command import exit_code
from e5jax.errors import UserError
from e5jax.synthetic import dataset, task_types


@dataclass(frozen=True, kw_only=True)
class PackageBenchmark:
    """Filters and TFDS dataset of a ledger that is made up."""

    folder: str
    """Gets ledger/ and dataset/."""
    records: int = 500_000
    processes: int = 2
    tokenizer: str | None = None
    """A tokenizer.json to count lengths with."""
    seed: int = 0


# Share of the answers, and what is wrong with them.
FAULTS = {
    "": 0.82,
    "cut": 0.01,
    "fenced": 0.05,
    "not JSON": 0.01,
    "extra field": 0.01,
    "in English": 0.02,
    "copied": 0.03,
    "nearly copied": 0.05,
}
SPOKEN = {"en": 0.431, "es": 0.1, "de": 0.1, "ru": 0.1, "zh": 0.1, "ar": 0.069, "vi": 0.05, "tr": 0.05}
# Words of a passage, by type.
LENGTHS = {
    "short-long": ((8, 8), (50, 500)),
    "long-short": ((10, 200), (2, 2)),
    "short-short": ((10, 10), (10, 10)),
    "long-long": ((300, 300), (300, 300)),
    "sts": ((10, 60), (10, 60)),
    "bitext": ((10, 60), (10, 60)),
}


def sentences(data: Path) -> dict[str, list[str]]:
    """{language: sentences of XQuAD's passages}."""
    found = {}
    for language in SPOKEN:
        articles = json.loads((data / "xquad" / f"{language}.json").read_text(encoding="utf-8"))["data"]
        passages = [paragraph["context"] for article in articles for paragraph in article["paragraphs"]]
        found[language] = [s for passage in passages for s in re.split(r"(?<=[.!?。؟])\s*", passage) if len(s) > 20]
    return found


def write_ledger(folder: Path, records: int, seed: int, spoken: dict[str, list[str]]) -> None:
    """`records` entries in the ledger's format, 10,000 a file."""
    folder.mkdir(parents=True)
    rng = random.Random(seed)
    kinds = list(task_types.TYPES.values())
    earlier: dict[str, list[dict]] = {kind.name: [] for kind in kinds}
    tasks = max(records // 3, 1)
    for start in range(0, records, 10_000):
        with (folder / f"answers-{start // 10_000:05d}.jsonl").open("wb") as file:
            for number in range(start, min(start + 10_000, records)):
                kind = rng.choices(kinds, [kind.share for kind in kinds])[0]
                entry = _entry(
                    kind, number, f"Task {rng.randrange(tasks)}, such as a search of it", rng, spoken, earlier
                )
                body = json.dumps(entry, ensure_ascii=False, separators=(",", ":")).encode()
                file.write(b'{"crc32":"%08x",' % zlib.crc32(body[1:]) + body[1:] + b"\n")


def _entry(kind, number, task, rng, spoken, earlier) -> dict:
    fault = rng.choices(list(FAULTS), list(FAULTS.values()))[0]
    drawn = {name: rng.choice(values) for name, values in kind.placeholders.items()}
    drawn |= dict(zip(kind.languages, _two(rng), strict=False))
    if kind.asymmetric:
        drawn["task"] = task
    before = earlier[kind.name]
    if fault in ("copied", "nearly copied") and before:
        drawn, fields = rng.choice(before)
        fields = dict(fields)
        if fault == "nearly copied":
            fields[kind.keys[1]] += " " + rng.choice(spoken[drawn[kind.languages[-1]]]).split()[0]
    else:
        wanted = [drawn[kind.languages[0]], *[drawn[kind.languages[-1]]] * 2]
        wanted = ["en"] * 3 if fault == "in English" else wanted
        sizes = [LENGTHS[kind.name][0], LENGTHS[kind.name][1], LENGTHS[kind.name][1]]
        texts = (_text(rng, spoken[code], size) for code, size in zip(wanted, sizes, strict=True))
        fields = dict(zip(kind.keys, texts, strict=False))
        before.append((drawn, fields))
        if len(before) > 2_000:
            before[rng.randrange(2_000)] = before.pop()
    text = json.dumps(fields | ({"note": "of mine"} if fault == "extra field" else {}), ensure_ascii=False)
    text = {"fenced": f"```json\n{text[:-1]},\n}}\n```", "not JSON": f"Sorry: {text[:-20]}"}.get(fault, text)
    return {
        "key": f"{rng.getrandbits(256):064x}",
        "cost": 300_000,
        "tokens": 800,
        "tries": 1,
        "gave_up": None,
        "time": 1_700_000_000.123 + number,
        "client": "gemini",
        "request": {
            "kind": "example",
            "task_type": kind.name,
            "number": number,
            "prompt_version": kind.version,
            "drawn": drawn,
            "prompt": kind.example_prompt(drawn),
            "sampling": {"model": "gemini-2.5-flash", "temperature": 1.0, "top_p": 1.0, "max_tokens": 2_048},
        },
        "answer": {
            "text": text,
            "finish_reason": "max_tokens" if fault == "cut" else "stop",
            "prompt_tokens": 300,
            "answer_tokens": 500,
            "model_version": "gemini-2.5-flash-001",
            "response_id": f"{rng.getrandbits(64):x}",
        },
    }


def _two(rng: random.Random) -> list[str]:
    first = rng.choices(list(SPOKEN), list(SPOKEN.values()))[0]
    return [first, rng.choice([code for code in SPOKEN if code != first])]


def _text(rng: random.Random, pool: list[str], size: tuple[int, int]) -> str:
    """Sentences up to that many words; about three characters are a word of Chinese."""
    wanted, text = rng.randint(*size) * 6, ""
    while len(text) < wanted:
        text += ("" if not text else " ") + rng.choice(pool)
    return text if wanted > 100 else text[:wanted].strip()


class Memory(threading.Thread):
    """The most that this process and its children held together, in bytes, looked at ten times a second."""

    def __init__(self):
        super().__init__(daemon=True)
        self.most = 0
        self.start()

    def run(self):
        while True:
            self.most = max(self.most, measured.held(os.getpid()))
            time.sleep(0.1)


def run(config: PackageBenchmark) -> None:
    """Write the ledger where there is none, package it, print the figures."""
    if "E5JAX_DATA" not in os.environ:
        raise UserError("E5JAX_DATA must name the folder of real data")
    folder = Path(config.folder)
    if not (folder / "ledger").exists():
        start = time.perf_counter()
        write_ledger(folder / "ledger", config.records, config.seed, sentences(Path(os.environ["E5JAX_DATA"])))
        print(f"ledger written: {time.perf_counter() - start:.0f} s")
    size = sum(path.stat().st_size for path in (folder / "ledger").iterdir())
    print(f"{config.records:,} records, {size / 1e9:.2f} GB, {config.processes} processes")
    memory = Memory()
    start = time.perf_counter()
    built = dataset.build(
        folder / "ledger",
        folder / "dataset",
        name="all",
        heldout=0.02,
        near_duplicates=0.8,
        check_language=True,
        max_characters=20_000,
        decontaminate=[f"{os.environ['E5JAX_DATA']}/banking77/test.csv"],
        prompt_versions=(),
        beam_runner=None,
        processes=config.processes,
        tokenizer=config.tokenizer,
        tell=lambda said: print(
            f"{time.perf_counter() - start:8.1f} s  {memory.most / 1e6:7.0f} MB  {said}", flush=True
        ),
    )
    print(f"{time.perf_counter() - start:8.1f} s  {memory.most / 1e6:7.0f} MB  {built}")


if __name__ == "__main__":
    sys.exit(exit_code(lambda: run(tyro.cli(PackageBenchmark, prog="python -m benchmarks.package"))))
