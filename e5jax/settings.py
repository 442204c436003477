"""A closed reading of other people's JSON settings: what is asked for and is not here is refused by name."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

from e5jax.errors import UserError


def refuse(raw: Mapping, refused: Mapping, where: Path):
    """UserError for the first key that is neither absent nor null nor harmless."""
    for key, (harmless, asks_for) in refused.items():
        if raw.get(key) not in (None, *harmless):
            raise UserError(f"{where}: {key}: {json.dumps(raw[key])} asks for {asks_for}; e5jax has no such thing")


def number(raw: Mapping, key: str, kind: type, where: Path):
    """The positive number under a key. Raises UserError for anything else."""
    value = raw.get(key)
    if value is None:
        raise UserError(f"{where}: {key} is missing")
    kinds = int if kind is int else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value < math.inf:
        raise UserError(f"{where}: {key} must be a positive number, not {json.dumps(value)}")
    return kind(value)
