"""MANIFEST.json: every file of a folder by size and sha256, so that a bit that changed later is found.

Orbax checks no array bytes: a flipped bit in a chunk comes back as another number. The manifest is
written last, so a folder without one was never finished; it carries a digest of itself.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from e5jax import files, places
from e5jax.errors import FailedError


NAME = "MANIFEST.json"


def write(folder: Path, facts: Mapping) -> None:
    """List what `folder` holds now, beside `facts` (JSON values) about it."""
    told = {"facts": dict(facts), "files": {name: _seen(folder / name) for name in sorted(_sizes(folder))}}
    files.write_json(folder / NAME, {**told, "digest": _digest(told)})


def read(folder: Path) -> dict:
    """-> the facts. Raises ValueError, in words, where there is no manifest or it was changed."""
    return _told(folder)["facts"]


def problems(folder: Path, within: str = "") -> list[str]:
    """What differs from the manifest, in words; nothing where the folder is whole.

    `within`: read only the files under this folder of it.
    """
    try:
        listed = _told(folder)["files"]
    except ValueError as error:
        return [str(error)]
    there = _sizes(folder)
    said = [f"{name} is missing" for name in sorted(listed.keys() - there.keys())]
    said += [f"{name} does not belong to it" for name in sorted(there.keys() - listed.keys())]
    for name in sorted(listed.keys() & there.keys()):
        expected = listed[name]
        if there[name] != expected["size"]:
            said.append(f"{name} has {there[name]} bytes instead of {expected['size']}")
        elif Path(within) in (Path(), *Path(name).parents) and _seen(folder / name) != expected:
            said.append(f"{name} was changed")
    return said


def _told(folder):
    try:
        told = json.loads((folder / NAME).read_bytes())
    except FileNotFoundError:
        raise ValueError(f"it has no {NAME}, so it was never finished") from None
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and places.is_remote(folder):  # which says nothing of the step
            raise FailedError(f"{folder / NAME} cannot be read now: {error}") from error
        raise ValueError(f"{NAME} cannot be read: {error}") from error
    if not isinstance(told, dict) or told.pop("digest", None) != _digest(told):
        raise ValueError(f"{NAME} was changed")
    return told


def _digest(told):
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _sizes(folder):
    return {name: size for name, size in files.sizes(folder).items() if name != NAME}


def _seen(path):
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"size": file.tell(), "sha256": digest}
