"""The built-in sample: 648 records of 175 tasks in 26 languages; README.md in this folder is its card."""

from pathlib import Path


TRAIN = str(Path(__file__).parent / "train.jsonl")
HELDOUT = str(Path(__file__).parent / "heldout.jsonl")
