"""Table 1, English MTEB, and the "w/o synthetic data" of Table 17."""

import e5_mistral_7b
import english_mteb
import labelled
import synthetic
import synthetic_msmarco

from e5jax.rows import Row, Table


def get_config() -> Table:
    full = "full data"
    return Table(
        title="Table 1: English MTEB",
        about="What each part of the training data is worth: 56 tasks, the mean over tasks as average.",
        columns=english_mteb.columns(),
        average="tasks",
        rows=(
            Row(
                name=full,
                train=e5_mistral_7b.get_config(),
                paper=english_mteb.paper("78.5 50.3 88.3 60.2 56.9 84.6 31.4 66.6"),
            ),
            Row(
                name="w/ synthetic data only",
                train=synthetic.get_config(),
                against=full,
                paper=english_mteb.paper("78.2 50.5 86.0 59.0 46.9 81.2 31.9 63.1"),
            ),
            Row(
                name="w/ synthetic + msmarco",
                train=synthetic_msmarco.get_config(),
                against=full,
                paper=english_mteb.paper("78.3 49.9 87.1 59.5 52.2 81.2 32.7 64.5"),
            ),
            Row(name="w/o synthetic data", train=labelled.get_config(), against=full, paper={"average": 64.6}),
        ),
    )
