"""A folder belongs to one job: what was asked for stands in its job.json, and another job is refused."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from e5jax.errors import UserError
from e5jax.files import write_json


def open_job(directory: Path, job: Mapping[str, Any], what: str, option: str) -> None:
    """Make the folder for a job, or find it there. UserError where it holds another one's, or other files.

    `job` holds JSON values; its `model` is a name, and a digest beside it tells models apart. `what` is in the folder,
    `option` names it on the command line.
    """
    job = json.loads(json.dumps(job))
    stored = _stored(directory, job, option)
    changed = [key for key in {**job, **stored} if job.get(key) != stored.get(key) and key != "model"]
    if changed:
        reasons = [f"{key} was {stored.get(key)!r}, now {job.get(key)!r}" for key in changed]
        raise UserError(f"{directory} holds {what} of another job: {'; '.join(reasons)}. Choose another {option}")


def _stored(directory: Path, job: dict, option: str) -> dict:
    """The job of the folder; this one, where it had none."""
    file = directory / "job.json"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if file.exists():
            return dict(json.loads(file.read_text(encoding="utf-8")))
        strangers = [path.name for path in directory.iterdir() if not path.name.startswith(".")]
        if not strangers:
            write_json(file, job)
            return job
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{directory} cannot be used: {error}") from error
    raise UserError(f"{directory} holds other files ({strangers[0]}): choose another {option}")
