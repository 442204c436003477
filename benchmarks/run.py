"""Speed beside what people use today: `python -m benchmarks.run --suite cpu --output speed.json`.

README.md beside this file says what each row is and how to read it. The table is printed and, with a header that says
where it comes from, written as JSON after every row. A row that breaks says so, the others go on, and the command exits
with 1.
"""

import dataclasses
import datetime
import functools
import importlib.metadata
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import tyro

from benchmarks.speed_rows import SUITES, Row, absent, table
from benchmarks.top_k import limit_threads
from e5jax import files
from e5jax.errors import FailedError, UserError


PACKAGES = ("jax", "jaxlib", "flax", "torch", "transformers", "sentence-transformers", "peft", "numpy")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Speed:
    """Speed beside what people use today, as rows with goals."""

    output: str
    """JSON with a header and the rows."""
    suite: Literal["cpu", "gpu", "tpu"] = "cpu"
    only: tuple[str, ...] = ()
    """Rows to measure, such as C2 C3; none: all of the suite."""
    full: bool = False
    """Both models, 512 × 8 and 1024 × 12 layers, on twice the texts; else the small one, within 40 minutes."""
    rounds: int = 5
    """Turns of every side, A B A B."""
    threads: int = 2
    data: str | None = None
    """Folder with xquad/, stsb/, tatoeba/ and mistral-tokenizer/; None: $E5JAX_DATA."""
    folder: str | None = None
    """Gets the models and the workers' logs; None: a temporary one."""
    replicate: bool = True
    """At 7B: a copy of the base on every device; else it is split over them."""


def chosen(config: Speed) -> tuple[str, ...]:
    """The rows to measure. Raises UserError for one that the suite does not have."""
    rows = SUITES[config.suite]
    if unknown := [name for name in config.only if name not in rows]:
        raise UserError(f"--only {' '.join(unknown)}: the {config.suite} suite has {', '.join(rows)}")
    return tuple(name for name in rows if name in config.only) or rows


def header(config: Speed, sizes: object) -> dict:
    """Where the rows come from."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    git = ["git", "-C", str(Path(__file__).parent)]
    said = lambda *words: subprocess.run([*git, *words], capture_output=True, text=True, check=False).stdout.strip()
    return {
        "command": " ".join(["python -m benchmarks.run", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": said("rev-parse", "HEAD") + ("+changes" if said("status", "--porcelain", "-uno") else ""),
        "processor": cpu("model name"),
        "avx512_bf16": "avx512_bf16" in cpu("flags").split(),
        "threads": config.threads,
        "python": sys.version.split()[0],
        "versions": versions,
        "sizes": sizes,
    }


def cpu(key: str) -> str:
    """The first value of a key of /proc/cpuinfo; nothing where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), "")


def measure(
    rows: Mapping[str, Callable[[], Row]], model: str, report: Callable[[Row, float], None]
) -> tuple[list[Row], list[str]]:
    """Every row -> (rows, names of those that broke). `report` gets each with the seconds that it took."""
    done, broken = [], []
    for name, row in rows.items():
        start = time.perf_counter()
        try:
            done.append(row())
        except Exception as error:  # one row that breaks must not take the others along
            traceback.print_exc()
            done.append(absent(name, model, f"failed: {type(error).__name__}: {error}"))
            broken.append(name)
        report(done[-1], time.perf_counter() - start)
    return done, broken


def run(config: Speed) -> int:
    """Measure, print, write -> the exit status."""
    names = chosen(config)
    facts: dict = {"header": {}, "rows": []}
    output = Path(config.output).expanduser()
    output.parent.mkdir(parents=True, exist_ok=True)

    def report(row: Row, seconds: float) -> None:
        facts["rows"].append({**dataclasses.asdict(row), "seconds": round(seconds, 1)})
        files.write_json(output, facts)
        print(f"{seconds:6.0f} s  {table([row]).splitlines()[-1]}", flush=True)

    suite = _cpu if config.suite == "cpu" else _device
    rows, broken = suite(config, names, facts, report)
    print(f"\n{table(rows)}")
    missed = [row.name for row in rows if row.met is False]
    print(f"\nbroken: {', '.join(broken) or 'none'}; below what they must reach: {', '.join(missed) or 'none'}")
    return 1 if broken else 0


def _cpu(config, names, facts, report):
    from benchmarks.speed_bench import SIZES, Bench
    from benchmarks.speed_data import MODELS
    from benchmarks.speed_encode_rows import ENCODE_ROWS
    from benchmarks.speed_train_rows import TRAIN_ROWS

    data = config.data or os.environ.get("E5JAX_DATA")
    if data is None:
        raise UserError("set E5JAX_DATA (or --data) to the folder with xquad/, stsb/, tatoeba/ and mistral-tokenizer/")
    limit_threads(config.threads)
    os.environ["JAX_PLATFORMS"] = "cpu"
    sizes = SIZES[config.full]
    models = list(MODELS) if config.full else list(MODELS)[:1]
    facts["header"] = header(
        config, {**dataclasses.asdict(sizes), "models": {model: MODELS[model] for model in models}}
    )
    low = "avx512_bf16" in cpu("flags").split()
    dtypes = ("float32", "bfloat16") if low else ("float32",)
    rows, broken = [], []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(config.folder or scratch).expanduser().resolve()
        for model in models:
            bench = Bench(model, sizes, Path(data), folder, config.rounds, dtypes)
            try:
                best = {side: {dtype: bench.roofline(side, dtype) for dtype in dtypes} for side in ("ours", "peer")}
                facts["header"].setdefault("best products, FLOP/s", {})[model] = best
                facts["header"].setdefault("seconds to compile", {})[model] = bench.compiled
                print(f"{model}, best product in GFLOP/s: {products(best)}", flush=True)
                todo = {name: functools.partial((TRAIN_ROWS | ENCODE_ROWS)[name], bench) for name in names}
                done, failed = measure(todo, model, report)
                rows, broken = rows + done, broken + failed
            finally:
                bench.close()
    files.write_json(Path(config.output).expanduser(), facts)
    return rows, broken


def products(best: Mapping[str, Mapping[str, float]]) -> str:
    """FLOP/s by side and dtype, in words."""
    return "; ".join(
        f"{side} " + ", ".join(f"{dtype} {flops / 1e9:.0f}" for dtype, flops in of_side.items())
        for side, of_side in best.items()
    )


def _device(config, names, facts, report):
    facts["header"] = header(config, {"model": "Mistral-7B", "triples": 2048})
    # Asked in a process of its own: JAX would take the memory that G6's two sides share.
    asked = [sys.executable, "-c", "import jax; print(jax.default_backend())"]
    found = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    if found != config.suite:
        why = f"not measured: no {config.suite.upper()} here"
        return measure({name: functools.partial(absent, name, "", why) for name in names}, "", report)
    with tempfile.TemporaryDirectory() as scratch:
        first = {"G6": functools.partial(_beside, config, Path(config.folder or scratch))} if "G6" in names else {}
        done, failed = measure(first, "Mistral-7B", report)
    from benchmarks.speed_device import ROWS, Device
    from e5jax.decoder import MISTRAL_7B_V01

    rest = [name for name in names if name != "G6"]
    device = Device(MISTRAL_7B_V01, 2048, config.rounds, config.replicate)
    rows, broken = measure({name: functools.partial(ROWS[name], device) for name in rest}, device.name, report)
    return rows + done, broken + failed


def _beside(config, folder):
    if config.suite != "gpu":
        return absent("G6", "", "not applicable: the peer runs on GPUs")
    from benchmarks.speed_beside import TRIPLES, Beside, g6
    from e5jax.decoder import MISTRAL_7B_V01

    fields = ("dim", "layers", "heads", "kv_heads", "head_dim", "hidden")
    sizes = {field: getattr(MISTRAL_7B_V01, field) for field in fields} | {"vocabulary": MISTRAL_7B_V01.vocab_size}
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    try:
        return g6(Beside(sizes=sizes, device="cuda", folder=folder, rounds=config.rounds, triples=TRIPLES))
    finally:
        del os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"]


def main() -> int:
    """The command."""
    try:
        return run(tyro.cli(Speed, prog="python -m benchmarks.run"))
    except (UserError, FailedError) as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1


if __name__ == "__main__":
    sys.exit(main())
