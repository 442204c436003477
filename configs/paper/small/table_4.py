"""Table 4 at small scale: Tatoeba's translations, languages of much text apart from those of less."""

import multilingual

from e5jax.experiments import Table


HIGH = ("deu", "fra", "spa", "rus", "cmn", "jpn", "ita", "por", "nld", "pol")
LOW = ("ara", "ces", "fin", "heb", "hin", "kor", "swe", "tur", "ukr", "vie")


def get_config() -> Table:
    columns = {"high-resource": HIGH, "low-resource": LOW}
    return Table(
        title="Table 4, small: translations of 20 languages, F1",
        about=(
            "In the paper, which pairs English with 112 languages, the model is at the top in BUCC's four and behind "
            "multilingual E5 over all of Tatoeba."
        ),
        columns={name: tuple(f"tatoeba-{language}" for language in languages) for name, languages in columns.items()},
        average="tasks",
        data_dir=str(multilingual.setting.HELDOUT),
        prepare=multilingual.setting.prepare,
        rows=multilingual.rows(with_bm25=False),
    )
