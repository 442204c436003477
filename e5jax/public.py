"""Public copies of the paper's training sets become records.

    python -m e5jax.public --input downloads --output data/e5

The files lie below the input folder, a folder a set; docs/public_sets.md says which, and where each is to be had.
OUTPUT/NAME.jsonl has a record a line, with its instruction as `task`; OUTPUT/public.json says what each was made of.
"""

import collections
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from e5jax import command, files, places
from e5jax.config import PublicConfig
from e5jax.errors import UserError
from e5jax.public_sets import copies, sets
from e5jax.public_sets.copies import Copy
from e5jax.public_sets.formats import Choice
from e5jax.public_sets.sets import SETS


PROG = "python -m e5jax.public"
HASHED_BYTES = 1 << 28
"""Of larger files name and size are noted, of others the sha256 too."""


def public(config: PublicConfig) -> list[Path]:
    """Write the records of the sets -> their files. Raises UserError with file:line for what cannot be read."""
    with places.output(config.output) as output:
        return _public(config, places.local(config.input), output)


def _public(config: PublicConfig, folder: Path, output: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    found = {name: _find(name, folder) for name in config.sets or SETS}
    missing = [name for name, copy in found.items() if copy is None]
    if config.sets and missing:
        raise UserError(f"{missing[0]}: no whole copy in {folder}; one of these:{_wanted(missing[0])}")
    if len(missing) == len(found):
        raise UserError(f"{folder}: none of {', '.join(found)} is there; for {missing[0]}:{_wanted(missing[0])}")
    if missing:
        print(f"not there: {', '.join(missing)}", flush=True)
    settings = {name: getattr(config, name) for name in ("negatives", "max_characters", "seed")}
    choice = Choice(negatives=config.negatives, characters=config.max_characters, seed=config.seed)
    report = _report(output / "public.json")
    made_of = {name: settings | {"files": _facts(folder, paths)} for name, (_, paths) in _there(found).items()}
    todo = [name for name in made_of if config.force or not _done(output, report, name, made_of[name])]
    output.mkdir(parents=True, exist_ok=True)
    for name, (copy, paths) in _there(found).items():
        if name in todo:
            report[name] = _write(name, copy, paths, choice, output) | made_of[name]
            files.write_json(output / "public.json", report)
        else:
            print(f"{name}: there already, {report[name]['records']:,} records of the same files", flush=True)
    return [output / f"{name}.jsonl" for name in made_of]


def _there(found: dict) -> dict[str, tuple[Copy, dict[str, list[Path]]]]:
    return {name: copy for name, copy in found.items() if copy is not None}


def _find(name: str, folder: Path) -> tuple[Copy, dict[str, list[Path]]] | None:
    """The first copy that is whole; the others are said."""
    whole = [(copy, paths) for copy in SETS[name].copies if (paths := copies.there(copy, folder))]
    for _, paths in whole[1:]:
        print(f"{name}: another copy is passed over: {next(iter(paths.values()))[0]}", flush=True)
    return whole[0] if whole else None


def _wanted(name: str) -> str:
    """What is looked for, a line a copy."""
    lines = []
    for copy in SETS[name].copies:
        together = " + ".join(" or ".join(patterns) for patterns in copy.files.values())
        lines.append(f"\n  {together}, from {copy.source}")
    return "".join(lines)


def _report(path: Path) -> dict:
    try:
        report = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if isinstance(report, dict):
            return report
    except (ValueError, RecursionError):
        pass
    raise UserError(f"{path}: not what {PROG} writes; remove it, or choose another --output")


def _done(output: Path, report: dict, name: str, made_of: dict) -> bool:
    """Whether a set is there of the same files and settings; UserError where there is another."""
    path = output / f"{name}.jsonl"
    if not path.exists():
        return False
    facts = report.get(name, {})
    other = [field for field, value in made_of.items() if facts.get(field) != value]
    if facts.get("bytes") != path.stat().st_size:
        other = ["content (public.json knows another)"]
    if other:
        raise UserError(
            f"{path} is there already, of other {', '.join(other)}: remove it, choose another --output, or --force"
        )
    return True


def _facts(folder: Path, paths: dict[str, list[Path]]) -> dict[str, dict]:
    """{name: bytes and, of files that are not too large, sha256}"""
    facts = {}
    for path in sorted({path for found in paths.values() for path in found}):
        size = path.stat().st_size
        facts[path.relative_to(folder).as_posix()] = {"bytes": size}
        if size <= HASHED_BYTES:
            with path.open("rb") as file:
                facts[path.relative_to(folder).as_posix()]["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    return facts


def _write(name: str, copy: Copy, paths: dict[str, list[Path]], choice: Choice, output: Path) -> dict:
    """Write OUTPUT/NAME.jsonl -> what it came to."""
    path = output / f"{name}.jsonl"
    records = against = 0
    left_out: collections.Counter = collections.Counter()
    with files.whole(path) as file, tqdm(desc=name, unit=" records", delay=1, disable=None) as progress:
        for found in copy.read(paths, choice):
            progress.update()
            if isinstance(found, str):
                left_out[found] += 1
                continue
            record = {"task": sets.task(name, found.query), **found._asdict()}
            file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
            records += 1
            against += bool(found.negatives)
        if not records:
            raise UserError(f"{next(iter(paths.values()))[0]}: no record for {name}{_reasons(left_out)}")
    print(f"{name}: {records:,} records, {against:,} with hard negatives{_reasons(left_out)} → {path}", flush=True)
    if copy.sampled and SETS[name].share < 1:
        print(f"{name}: this copy is a sample already: give its Source sample=1, not {SETS[name].share:g}", flush=True)
    return {
        "copy": copy.source,
        "sampled": copy.sampled,
        "records": records,
        "with_negatives": against,
        "left_out": dict(left_out),
        "bytes": path.stat().st_size,
    }


def _reasons(left_out: collections.Counter) -> str:
    told = ", ".join(f"{count:,} {reason}" for reason, count in left_out.most_common())
    return f"; left out {left_out.total():,}: {told}" if told else ""


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    return command.main(public, PublicConfig, PROG, argv, needs_file=False)


if __name__ == "__main__":
    sys.exit(main())
