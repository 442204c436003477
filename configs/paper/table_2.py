"""Tables 2 and 6: MIRACL, languages of much text on the web apart from those of less."""

from pathlib import Path

import e5_mistral_7b

from e5jax.command import load_config
from e5jax.rows import Row, Table


PAPER = load_config(str(Path(__file__).parents[1] / "eval" / "miracl.py")).paper
HIGH = ("en", "es", "fr", "ja", "ru", "zh")
"""Of MIRACL's languages those with the most text on the web; Arabic has less, as in the small table."""


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
