"""Personalised passkey retrieval: which of 100 long documents hides this person's pass key? Top-1 accuracy by length.

    python -m e5jax.evaluate --config configs/eval/passkey.py
    python -m e5jax.evaluate --config configs/eval/passkey.py --window 32768 --rope-theta 1e5 --output runs/eval/1e5

The numbers beside it: E5-mistral-7b as it was trained, window 4,096 and base 10,000, Figure 5 of arXiv 2401.00368. The
picture shows its other three lines, too; the second command is the best of them. The texts are made here, so they are
not those of the paper. 32,768 tokens at 7B take an accelerator; `--passkey-lengths 256 512` asks for less.
"""

from e5jax.config import EvaluateConfig


PAPER = {256: 100, 512: 100, 1024: 100, 2048: 100, 4096: 100, 8192: 70, 16_384: 30, 32_768: 26}


def get_config() -> EvaluateConfig:
    return EvaluateConfig(
        output="runs/eval/passkey",
        model=("intfloat/e5-mistral-7b-instruct",),
        tasks=("passkey",),
        passkey_lengths=tuple(PAPER),
        paper={f"passkey-{length}": percent for length, percent in PAPER.items()},
    )
