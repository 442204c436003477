"""Files that are there whole or not at all."""

import json
import os
import secrets
from pathlib import Path


def partial(path: Path) -> Path:
    """A name beside a file that no other writer has, on this machine or another: process numbers are not enough."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}")


def write_text(path: Path, text: str) -> None:
    """Written beside its place, then renamed: a reader never sees half of it, a killed writer leaves the old one."""
    aside = partial(path)
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)


def write_json(path: Path, value) -> None:
    """A JSON value, indented for people."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
