"""Figure 5: personalised passkey retrieval under other windows and bases of the rotary angles."""

import e5_mistral_7b

from e5jax.passkey import LENGTHS, PAPER
from e5jax.rows import Row, Table


TRAINED = "window 4k, base 10⁴"
MEASURED = {
    "window 32k, base 10⁴": {"window": 32_768, "rope_theta": 1e4},
    "window 32k, base 10⁵": {"window": 32_768, "rope_theta": 1e5},
    "window 32k, base 10⁶": {"window": 32_768, "rope_theta": 1e6},
}


def get_config() -> Table:
    paper = {name: dict(zip(map(str, LENGTHS), map(float, line), strict=True)) for name, line in PAPER.items()}
    others = [
        Row(name=name, trained_as=TRAINED, measured=fields, paper=paper[name]) for name, fields in MEASURED.items()
    ]
    return Table(
        title="Figure 5: passkeys by length, accuracy",
        about="Another window and base at inference read texts that are eight times as long as any in training.",
        columns={str(length): (f"passkey-{length}",) for length in LENGTHS},
        average=None,
        rows=(Row(name=TRAINED, train=e5_mistral_7b.get_config(), paper=paper[TRAINED]), *others),
    )
