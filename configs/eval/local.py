"""Everything that is measured without a network: STS, retrieval, bitext and intents from files under $E5JAX_DATA.

    E5JAX_DATA=... python -m e5jax.evaluate --config configs/eval/local.py --model runs/xquad_cpu

The README says where the files come from. The paper (Table 17, E5-mistral-7b with full data) has two of the sets:
STSBenchmark, whose test pairs are those of stsb-en, and Banking77.
"""

from e5jax.config import EvaluateConfig


STSB = ("en", "de", "es", "fr", "ru", "zh")
XQUAD = ("en", "de", "es", "ru", "zh", "ar", "vi", "tr")
TATOEBA = """
ara ces cmn deu fin fra heb hin ita jpn kor nld pol por rus spa swe tur ukr vie
""".split()


def get_config() -> EvaluateConfig:
    folders = {"stsb": STSB, "xquad": XQUAD, "tatoeba": TATOEBA}
    return EvaluateConfig(
        output="runs/eval/local",
        model=("intfloat/e5-mistral-7b-instruct",),
        tasks=(*(f"{folder}-{part}" for folder, parts in folders.items() for part in parts), "banking77"),
        paper={"stsb-en": 88.6, "banking77": 88.2},
    )
