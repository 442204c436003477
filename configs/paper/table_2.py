"""Tables 2 and 6: MIRACL, and the languages of many speakers' texts apart from the others."""

from pathlib import Path

import e5_mistral_7b

from e5jax.command import load_config
from e5jax.rows import Row, Table


PAPER = load_config(str(Path(__file__).parents[1] / "eval" / "miracl.py")).paper
HIGH = ("ar", "en", "es", "fr", "ja", "ru", "zh")
"""High-resource languages of MIRACL; the others have a tenth of their text on the web or less."""


def get_config() -> Table:
    scores = {name.partition("/")[2]: value for name, value in PAPER.items()}
    of = lambda languages: sum(scores[language] for language in languages) / len(languages)
    low = tuple(sorted(scores.keys() - {*HIGH}))
    columns = {"high-resource": HIGH, "low-resource": low}
    return Table(
        title="Table 2: MIRACL, nDCG@10",
        about="A base that has read mostly English is as good as others where there is much text, and not elsewhere.",
        columns={name: tuple(f"MIRACLRetrieval/{l}" for l in languages) for name, languages in columns.items()},
        average="tasks",
        rows=(
            Row(
                name="E5-mistral-7b, full data",
                train=e5_mistral_7b.get_config(),
                paper={"average": of(scores), "high-resource": of(HIGH), "low-resource": of(low)},
            ),
        ),
    )
