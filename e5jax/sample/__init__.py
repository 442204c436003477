"""The built-in sample: the ledger of `configs/synthesize_sample.py`; README.md in this folder is its card."""

from pathlib import Path


LEDGER = str(Path(__file__).parent / "ledger")
