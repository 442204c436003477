"""Table 4: bitext mining."""

import e5_mistral_7b

from e5jax.rows import Row, Table


def get_config() -> Table:
    return Table(
        title="Table 4: bitext mining, F1",
        about="Sentences of BUCC 2018 in 4 languages and of Tatoeba in 112, and their English translations.",
        columns={"BUCC 2018": ("BUCC",), "Tatoeba": ("Tatoeba",)},
        average="tasks",
        rows=(
            Row(
                name="E5-mistral-7b, full data",
                train=e5_mistral_7b.get_config(),
                paper={"BUCC 2018": 98.9, "Tatoeba": 70.1},
            ),
        ),
    )
