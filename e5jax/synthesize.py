"""Ask an LLM for training examples: `python -m e5jax.synthesize --config configs/synthesize_small.py`.

brainstorms → the pool of tasks, frozen in tasks.json → examples; or, from a corpus: queries → rankings
       → ledger/, where every answer is kept once and for all → report.json
"""

import asyncio
import dataclasses
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from e5jax import command, files, places
from e5jax.errors import FailedError, UserError
from e5jax.synthetic import answers, batches, budget, clients, grounded, plan, runner
from e5jax.synthetic.budget import Budget, Spent
from e5jax.synthetic.config import SynthesizeConfig
from e5jax.synthetic.ledger import Ledger
from e5jax.synthetic.progress import Progress
from e5jax.synthetic.request import Request, Sampling
from e5jax.synthetic.tally import Report


PROG = "python -m e5jax.synthesize"
# What decides the requests: a workdir is of one such plan. More `examples` of it may be asked for later.
PLAN = (
    "model",
    "types",
    "languages",
    "placeholders",
    "topics",
    "tasks_per_topic",
    "brainstorms",
    "grounded",
    "temperature",
    "top_p",
    "max_tokens",
    "seed",
)


def synthesize(config: SynthesizeConfig) -> dict:
    """Ask, or go on asking, for what the config says -> the report, also in report.json.

    Raises UserError for what the user can mend, FailedError where asking came to nothing.
    """
    plan.mix(config)  # wrong names before anything else
    with places.output(config.workdir) as workdir:
        return _synthesize(dataclasses.replace(config, workdir=str(workdir)))


def _synthesize(config: SynthesizeConfig) -> dict:
    workdir = Path(config.workdir)
    sampling = Sampling(
        model=config.model, temperature=config.temperature, top_p=config.top_p, max_tokens=config.max_tokens
    )
    prices = budget.FREE if config.client == "replay" else budget.read_prices(config.prices)
    budget.price_of(prices, config.model)
    passages = grounded.load(config.grounded) if config.grounded else None
    if config.dry_run:
        return dry_run(config, sampling, prices, passages)
    client = clients.open_client(
        config.client, model=config.model, key_file=config.key_file, timeout_s=config.timeout_s, replay=config.replay
    )
    check_plan(workdir, config)
    with Ledger(workdir / "ledger") as ledger:
        batch = config.client == "gemini-batch"
        spending = Budget(config.caps, prices, config.model, batch=batch, spent=ledger.spent)
        ask = _asker(config, client, ledger, spending, workdir)
        phases = (
            grounded_phases(config, sampling, passages, ledger) if passages else task_phases(config, sampling, ledger)
        )
        report = asyncio.run(_run(phases, ask, client))
    report = {"workdir": str(workdir), "spent": _money(spending.spent), "damaged_lines": ledger.damaged, **report}
    files.write_json(workdir / "report.json", report)
    print(_said(report))
    return report


Phase = tuple[str, int, Iterable[Request]]  # (name, how many at the most, requests)


def task_phases(config: SynthesizeConfig, sampling: Sampling, ledger: Ledger) -> Iterator[Phase]:
    """Brainstorms, unless there is a pool of tasks; then examples of its tasks."""
    frozen = Path(config.workdir) / "tasks.json"
    if not frozen.exists():
        requests = list(plan.brainstorms(config, sampling))
        yield "brainstorms", len(requests), requests
        keys = {request.key for request in requests}
        if unsettled := sum(key not in ledger for key in keys):
            raise FailedError(f"{unsettled} brainstorms are still to be asked for: the same command goes on with them")
        answered = ((entry["request"], task_list(entry["answer"]["text"])) for entry in _answered(ledger, keys))
        # From here on tasks stay as they are: another pool would make other requests, and all be paid again.
        files.write_json(frozen, plan.pool(answered))
    tasks = json.loads(frozen.read_text(encoding="utf-8"))
    yield "examples", config.examples, plan.examples(config, sampling, tasks)


def grounded_phases(
    config: SynthesizeConfig, sampling: Sampling, passages: Sequence[str], ledger: Ledger
) -> Iterator[Phase]:
    """A task and a query for each passage; then a ranking of what the query finds."""
    requests = list(grounded.queries(config, sampling, passages))
    yield "queries", len(requests), requests
    keys = {request.key for request in requests}
    answered = ((entry["request"], _object(entry["answer"]["text"])) for entry in _answered(ledger, keys))
    pairs = [(request, fields) for request, fields in answered if {"task", "query"} <= set(fields)]
    yield "rankings", len(pairs), grounded.rankings(config, sampling, passages, pairs)


def _answered(ledger: Ledger, keys: set[str]) -> Iterator[dict]:
    for entry in ledger.read():
        if entry["key"] in keys and entry["answer"] is not None and entry["answer"]["finish_reason"] == "stop":
            yield entry


def task_list(text: str) -> list[str]:
    """The tasks that a brainstorm answered; none where it is no list."""
    found = _json(text)
    return [task for task in found if isinstance(task, str)] if isinstance(found, list) else []


def _object(text: str) -> Mapping[str, str]:
    found = _json(text)
    return found if isinstance(found, dict) and all(isinstance(v, str) for v in found.values()) else {}


def _json(text: str):
    """The JSON value of an answer, perhaps in a fence; None where there is none."""
    try:
        return json.loads(answers.unfenced(text))
    except (ValueError, RecursionError):
        return None


def _asker(config, client, ledger, spending, workdir) -> Callable:
    """`ask(requests, tell)`: by single requests or by batch jobs."""
    common = dict(client_name=config.client, attempts=config.attempts, retry_given_up=config.retry_given_up)
    if config.client == "gemini-batch":
        jobs = dict(folder=workdir / "ledger", lines=batches.LINES, at_once=batches.AT_ONCE, poll_s=batches.POLL_S)
        return lambda requests, tell: batches.run(requests, client, ledger, spending, tell=tell, **jobs, **common)
    pace = dict(concurrency=config.concurrency, timeout_s=config.timeout_s)
    return lambda requests, tell: runner.run(requests, client, ledger, spending, tell=tell, **pace, **common)


async def _run(phases: Iterator[Phase], ask: Callable, client) -> dict:
    """Phase after phase, until one is stopped -> a report of each."""
    reports = {}
    try:
        for name, total, requests in phases:
            print(f"{name}: {total:,} requests", flush=True)
            progress = Progress(total)
            try:
                report: Report = await ask(requests, progress)
            finally:
                progress.close()
            reports[name] = dataclasses.asdict(report) | {"spent": _money(report.spent)}
            if report.stopped is not None:
                break
    finally:
        await client.close()
    return {"phases": reports, "stopped": next((r["stopped"] for r in reports.values() if r["stopped"]), None)}


def dry_run(config: SynthesizeConfig, sampling: Sampling, prices, passages: Sequence[str] | None) -> dict:
    """What would be asked and what it costs at the most; nothing is asked and nothing written."""
    spending = Budget(config.caps, prices, config.model, batch=config.client == "gemini-batch", spent=budget.NOTHING)
    if passages:
        phases = {
            "queries": grounded.queries(config, sampling, passages),
            "rankings": (grounded.costliest_ranking(sampling, passages) for _ in range(config.examples)),
        }
    else:
        phases = {
            "brainstorms": plan.brainstorms(config, sampling),
            "examples": plan.examples(config, sampling, plan.stand_in_pool()),
        }
    report = {}
    for name, requests in phases.items():
        worst = sum(map(spending.worst_case, requests), budget.NOTHING)
        report[name] = {"requests": worst.requests, "at_most": _money(worst)}
        print(f"{name}: {worst.requests:,} requests, at most {budget.dollars(worst.nanodollars)} in one try each")
    return report


def check_plan(workdir: Path, config: SynthesizeConfig) -> None:
    """UserError, by field, where the workdir is of another plan; else its plan.json is there."""
    path = workdir / "plan.json"
    wanted = {name: value for name, value in command.to_json(config).items() if name in PLAN}
    wanted["corpus"] = grounded.fingerprint(config.grounded) if config.grounded else None
    if not path.exists():
        if workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
            raise UserError(f"{workdir} is not empty and holds no plan: choose another --workdir")
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            files.write_json(path, wanted)
        except OSError as error:
            raise UserError(f"{workdir} cannot be written: {error}") from error
    stored = json.loads(path.read_text(encoding="utf-8"))
    if changed := [name for name in wanted if stored.get(name) != wanted[name]]:
        reasons = "; ".join(f"{name} was {stored.get(name)!r}, now {wanted[name]!r}" for name in changed)
        raise UserError(f"{workdir} is of another plan: {reasons}. Choose another --workdir")


def _money(spent: Spent) -> dict:
    return {"dollars": spent.nanodollars / budget.NANODOLLARS, "tokens": spent.tokens, "tries": spent.requests}


def _said(report: dict) -> str:
    lines = []
    for name, phase in report["phases"].items():
        lines.append(f"{name}: {phase['done']:,} answered, {phase['skipped']:,} there before")
        lines += [f"  gave up on {count:,}: {reason}" for reason, count in phase["gave_up"].items()]
        unfinished = {reason: count for reason, count in phase["finish_reasons"].items() if reason != "stop"}
        lines += [f"  {count:,} of no use, ended by {reason}" for reason, count in unfinished.items()]
    if report["stopped"]:
        lines.append(f"stopped: {report['stopped']}; the same command goes on")
    money = report["spent"]
    return "\n".join(
        [*lines, f"spent so far: ${money['dollars']:.4f}, {money['tokens']:,} tokens; {report['workdir']}"]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    return command.main(synthesize, SynthesizeConfig, PROG, argv, needs_file=False)


if __name__ == "__main__":
    sys.exit(main())
