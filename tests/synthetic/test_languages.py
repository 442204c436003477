import pytest

from e5jax.errors import UserError
from e5jax.synthetic import languages


def test_there_are_the_93_languages_of_the_paper_and_their_shares_are_those_of_figure_2():
    assert len(languages.NAMES) == len(languages.PAPER) == 93
    assert sum(languages.PAPER.values()) == pytest.approx(1)
    assert languages.PAPER["en"] == pytest.approx(0.431)
    assert languages.PAPER["pl"] == pytest.approx(0.030)
    assert languages.PAPER["ar"] == pytest.approx(0.027)
    unnamed = [share for code, share in languages.PAPER.items() if code not in languages.NAMED]
    assert len(unnamed) == 79
    assert sum(unnamed) == pytest.approx(0.198)
    assert len(set(unnamed)) == 1


def test_names_are_those_of_langcodes():
    langcodes = pytest.importorskip("langcodes")
    pytest.importorskip("language_data")
    assert languages.NAMES == {code: langcodes.Language.get(code).display_name() for code in languages.NAMES}


def test_all_but_three_of_the_languages_are_told_apart_by_py3langid():
    langid = pytest.importorskip("py3langid.langid")
    known = langid.LanguageIdentifier.from_model_file(langid.MODEL_DIR / langid.MODEL_FILE).nb_classes
    assert set(languages.NAMES) - set(map(str, known)) == {"sd", "su", "yi"}


def test_a_language_goes_by_code_or_by_english_name():
    assert languages.resolve(["de", "German", "scottish gaelic", "FR"]) == ["de", "de", "gd", "fr"]


def test_an_unknown_language_is_answered_with_the_known_ones():
    with pytest.raises(UserError, match=r"unknown klingon.*known: af Afrikaans, .*zh Chinese"):
        languages.resolve(["en", "klingon"])
    with pytest.raises(UserError, match="did you mean german"):
        languages.resolve(["Germn"])
