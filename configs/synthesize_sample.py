"""The built-in sample, asked for again: its answers are in the project, so this needs no key and no network.

python -m e5jax.synthesize --config configs/synthesize_sample.py
python -m e5jax.package --config configs/package_sample.py

Texts are shorter than the paper's, and half of the examples are English: enough for a tiny decoder to learn from.
"""

from e5jax.sample import LEDGER
from e5jax.synthetic.config import SynthesizeConfig


OTHERS = "ar bn cs de el es fa fi fr hi id it ja ko nl pl pt ro ru sv sw tr uk vi zh"  # as many examples as English has


def get_config() -> SynthesizeConfig:
    return SynthesizeConfig(
        workdir="runs/sample",
        client="replay",
        replay=LEDGER,
        model="llm",
        examples=660,
        types={"short-long": 270, "long-short": 96, "short-short": 84, "long-long": 18, "sts": 96, "bitext": 96},
        languages={"en": 25.0, **{code: 1.0 for code in OTHERS.split()}},
        placeholders={
            "short-long.num_words": ("40", "60", "80"),
            "long-short.num_words": ("less than 10", "at least 10", "at least 30"),
            "sts.unit": ("phrase", "sentence"),
            "bitext.unit": ("phrase", "sentence"),
        },
    )
