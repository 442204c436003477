"""Tables 2 and 6 at small scale: XQuAD for MIRACL, languages of much text on the web apart from those of less."""

import multilingual

from e5jax.experiments import Table


HIGH, LOW = ("en", "de", "es", "ru", "zh"), ("ar", "vi", "tr")


def get_config() -> Table:
    columns = {"high-resource": HIGH, "low-resource": LOW}
    return Table(
        title="Table 2, small: questions in 8 languages, nDCG@10",
        about=(
            "The paper's model, whose base has read mostly English, keeps up with multilingual E5 where there is much "
            "text, and not where there is little. MiniLM's vocabulary is English: the same split, more sharply."
        ),
        columns={name: tuple(f"xquad-{language}" for language in languages) for name, languages in columns.items()},
        average="tasks",
        data_dir=str(multilingual.setting.HELDOUT),
        prepare=multilingual.setting.prepare,
        rows=multilingual.rows(with_bm25=True),
    )
