"""Files that are there whole or not at all."""

import json
import os
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Written beside its place, then renamed: a reader never sees half of it, a killed writer leaves the old one."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def write_json(path: Path, value) -> None:
    """A JSON value, indented for people."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
