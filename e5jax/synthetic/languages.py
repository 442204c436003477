"""The languages that examples are written in, and how often: figure 2 of the paper over the list of XLM-R.

XLM-R (Conneau et al. 2020, table 6) lists 100 corpora. Five are romanised variants (Bengali, Hindi, Tamil, Telugu,
Urdu), Burmese and Chinese stand there twice (two encodings, two scripts): 93 languages, the paper's number. A language
goes by its ISO 639-1 code (`tl` is Filipino, `no` Norwegian), as in XLM-R and py3langid.
"""

from collections.abc import Iterable

from e5jax.errors import UserError
from e5jax.prompts import nearest


# As langcodes names them. Written down because a prompt holds the name: another edition of the names would ask, and
# pay, for everything again.
NAMES: dict[str, str] = {
    "af": "Afrikaans", "am": "Amharic", "ar": "Arabic", "as": "Assamese", "az": "Azerbaijani", "be": "Belarusian",
    "bg": "Bulgarian", "bn": "Bangla", "br": "Breton", "bs": "Bosnian", "ca": "Catalan", "cs": "Czech", "cy": "Welsh",
    "da": "Danish", "de": "German", "el": "Greek", "en": "English", "eo": "Esperanto", "es": "Spanish",
    "et": "Estonian", "eu": "Basque", "fa": "Persian", "fi": "Finnish", "fr": "French", "fy": "Western Frisian",
    "ga": "Irish", "gd": "Scottish Gaelic", "gl": "Galician", "gu": "Gujarati", "ha": "Hausa", "he": "Hebrew",
    "hi": "Hindi", "hr": "Croatian", "hu": "Hungarian", "hy": "Armenian", "id": "Indonesian", "is": "Icelandic",
    "it": "Italian", "ja": "Japanese", "jv": "Javanese", "ka": "Georgian", "kk": "Kazakh", "km": "Khmer",
    "kn": "Kannada", "ko": "Korean", "ku": "Kurdish", "ky": "Kyrgyz", "la": "Latin", "lo": "Lao", "lt": "Lithuanian",
    "lv": "Latvian", "mg": "Malagasy", "mk": "Macedonian", "ml": "Malayalam", "mn": "Mongolian", "mr": "Marathi",
    "ms": "Malay", "my": "Burmese", "ne": "Nepali", "nl": "Dutch", "no": "Norwegian", "om": "Oromo", "or": "Odia",
    "pa": "Punjabi", "pl": "Polish", "ps": "Pashto", "pt": "Portuguese", "ro": "Romanian", "ru": "Russian",
    "sa": "Sanskrit", "sd": "Sindhi", "si": "Sinhala", "sk": "Slovak", "sl": "Slovenian", "so": "Somali",
    "sq": "Albanian", "sr": "Serbian", "su": "Sundanese", "sv": "Swedish", "sw": "Swahili", "ta": "Tamil",
    "te": "Telugu", "th": "Thai", "tl": "Filipino", "tr": "Turkish", "ug": "Uyghur", "uk": "Ukrainian", "ur": "Urdu",
    "uz": "Uzbek", "vi": "Vietnamese", "xh": "Xhosa", "yi": "Yiddish", "zh": "Chinese",
}  # fmt: skip

# Percent of the examples, figure 2.
NAMED = {
    "en": 43.1, "pl": 3.0, "ja": 2.9, "it": 2.9, "ru": 2.9, "id": 2.9, "de": 2.9, "fa": 2.9,
    "es": 2.8, "zh": 2.8, "fr": 2.8, "pt": 2.8, "nl": 2.8, "ar": 2.7,
}  # fmt: skip
OTHERS = 19.8  # percent, over the languages that the figure does not name

PAPER: dict[str, float] = {code: NAMED.get(code, OTHERS / (len(NAMES) - len(NAMED))) / 100 for code in NAMES}


def resolve(languages: Iterable[str]) -> list[str]:
    """The code of each, given as code or English name, letter case aside; UserError naming the known ones."""
    codes = {code: code for code in NAMES} | {name.lower(): code for code, name in NAMES.items()}
    if unknown := [name for name in languages if name.lower() not in codes]:
        known = ", ".join(f"{code} {name}" for code, name in NAMES.items())
        raise UserError(f"languages: unknown {', '.join(unknown)}{nearest(unknown[0], codes)} (known: {known})")
    return [codes[name.lower()] for name in languages]
