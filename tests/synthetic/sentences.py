"""What the stand-in servers write: sentences of fourteen languages, put together from phrases by chance.

A text is a pure function of the `random.Random` it is drawn with; a language that is not here is written in English.
"""

import random


# Three lists a language; a sentence takes a phrase of each, in this order.
PHRASES = {
    "English": (
        "The old captain|My younger sister|Our careful neighbour|The village doctor|A tired engineer|The new teacher",
        "slowly carried|has always admired|finally repaired|often forgets about|wrote a letter about|once painted",
        "the wooden bridge near the river|a heavy box of apples|the broken clock in the hall|"
        "the garden behind the church|every book on the highest shelf|the little boats in the harbour",
    ),
    "German": (
        "Der alte Kapitän|Meine jüngere Schwester|Unser vorsichtiger Nachbar|Der Arzt aus dem Dorf|Die neue Lehrerin",
        "bewundert seit vielen Jahren|beschreibt heute sehr genau|vergisst manchmal|malt am Sonntag|sucht schon lange",
        "die hölzerne Brücke über den Fluss|eine schwere Kiste mit Äpfeln|die kaputte Uhr im Flur|"
        "den Garten hinter der Kirche|jedes Buch auf dem obersten Regal",
    ),
    "French": (
        "Le vieux capitaine|Ma petite sœur|Notre voisin prudent|Le médecin du village|La nouvelle institutrice",
        "a longtemps admiré|décrit souvent avec soin|oublie parfois|voudrait réparer bientôt|a peint une fois",
        "le pont en bois près de la rivière|une lourde caisse de pommes|l'horloge cassée dans le couloir|"
        "le jardin derrière l'église|tous les livres de l'étagère du haut",
    ),
    "Spanish": (
        "El viejo capitán|Mi hermana menor|Nuestro vecino prudente|El médico del pueblo|La nueva maestra",
        "siempre ha admirado|describe con mucho cuidado|a veces olvida|quiere reparar mañana|pintó una vez",
        "el puente de madera junto al río|una pesada caja de manzanas|el reloj roto del pasillo|"
        "el jardín detrás de la iglesia|todos los libros del estante más alto",
    ),
    "Italian": (
        "Il vecchio capitano|Mia sorella minore|Il nostro vicino prudente|Il medico del villaggio|La nuova maestra",
        "ha sempre ammirato|descrive con molta cura|qualche volta dimentica|vuole riparare domani|dipinse una volta",
        "il ponte di legno vicino al fiume|una pesante cassa di mele|l'orologio rotto nel corridoio|"
        "il giardino dietro la chiesa|tutti i libri dello scaffale più alto",
    ),
    "Portuguese": (
        "O velho capitão|A minha irmã mais nova|O nosso vizinho cuidadoso|O médico da aldeia|A nova professora",
        "sempre admirou|descreve com muita atenção|às vezes esquece|quer consertar amanhã|pintou uma vez",
        "a ponte de madeira perto do rio|uma caixa pesada de maçãs|o relógio quebrado no corredor|"
        "o jardim atrás da igreja|todos os livros da prateleira mais alta",
    ),
    "Dutch": (
        "De oude kapitein|Mijn jongere zus|Onze voorzichtige buurman|De dokter uit het dorp|De nieuwe onderwijzeres",
        "bewondert al vele jaren|beschrijft vandaag heel nauwkeurig|vergeet soms|schildert vaak|zoekt al lang",
        "de houten brug over de rivier|een zware kist met appels|de kapotte klok in de gang|"
        "de tuin achter de kerk|elk boek op de bovenste plank",
    ),
    "Polish": (
        "Stary kapitan|Moja młodsza siostra|Nasz ostrożny sąsiad|Lekarz z naszej wsi|Nowa nauczycielka",
        "od wielu lat podziwia|dzisiaj dokładnie opisuje|czasami maluje|bardzo często wspomina|wkrótce naprawi",
        "drewniany most nad rzeką|ciężką skrzynię pełną jabłek|zepsuty zegar w przedpokoju|"
        "ogród za starym kościołem|wszystkie książki z najwyższej półki",
    ),
    "Russian": (
        "Старый капитан|Моя младшая сестра|Наш осторожный сосед|Сельский врач|Новая учительница",
        "уже много лет вспоминает|сегодня подробно описывает|иногда рисует|очень часто фотографирует|скоро починит",
        "деревянный мост через реку|тяжёлый ящик с яблоками|сломанные часы в коридоре|"
        "сад за старой церковью|все книги с верхней полки",
    ),
    "Indonesian": (
        "Kapten tua itu|Adik perempuan saya|Tetangga kami yang hati-hati|Dokter di desa itu|Guru baru di sekolah",
        "selalu mengagumi|hari ini menjelaskan dengan teliti|kadang-kadang melupakan|ingin memperbaiki|pernah melukis",
        "jembatan kayu di dekat sungai|sebuah kotak berat berisi apel|jam rusak di lorong rumah|"
        "kebun di belakang gereja|semua buku di rak yang paling tinggi",
    ),
    "Japanese": (
        "年老いた船長は|私の妹は|隣の家の人は|村の医者は|新しい先生は",
        "川の近くの木の橋を|重いりんごの箱を|廊下の壊れた時計を|教会の裏の庭を|一番上の棚の本を",
        "いつも大切にしている|明日ゆっくり直すつもりだ|ときどき忘れてしまう|昔から絵に描いている|友達に詳しく説明した",
    ),
    "Chinese": (
        "年老的船长|我的妹妹|我们谨慎的邻居|村里的医生|新来的老师",
        "一直很喜欢|今天仔细地描述了|有时候会忘记|打算明天修理|曾经画过",
        "河边的木桥|一箱很重的苹果|走廊里坏掉的时钟|教堂后面的花园|最高书架上的每一本书",
    ),
    "Arabic": (
        "القبطان العجوز|أختي الصغيرة|جارنا الحذر|طبيب القرية|المعلمة الجديدة",
        "لا ينسى أبدا|وصف اليوم بعناية|رسم مرة واحدة|يريد أن يصلح غدا|يتحدث كثيرا عن",
        "الجسر الخشبي بالقرب من النهر|صندوق التفاح الثقيل|الساعة المكسورة في الممر|"
        "الحديقة خلف المدرسة القديمة|كل الكتب على الرف الأعلى",
    ),
    "Persian": (
        "ناخدای پیر|خواهر کوچک من|همسایه محتاط ما|پزشک روستا|آموزگار تازه",
        "پل چوبی کنار رودخانه را|جعبه سنگین سیب را|ساعت شکسته راهرو را|باغ پشت مدرسه را|همه کتاب‌های قفسه بالا را",
        "همیشه دوست داشته است|امروز با دقت توصیف کرد|گاهی فراموش می‌کند|می‌خواهد فردا تعمیر کند|یک بار نقاشی کرده است",
    ),
}
UNSPACED = ("Japanese", "Chinese")


def text(language: str, sentences: int, rng: random.Random) -> str:
    """So many sentences, and a number that no other text has."""
    lists = [phrases.split("|") for phrases in PHRASES.get(language, PHRASES["English"])]
    space, stop = ("", "。") if language in UNSPACED else (" ", ". ")
    drawn = [space.join(rng.choice(phrases) for phrases in lists) for _ in range(sentences)]
    return f"{stop.join(drawn)} {rng.randrange(10**9)}{stop.strip()}"


def task(rng: random.Random) -> str:
    """One sentence in the imperative, as a brainstorm's answer has them."""
    what = rng.choice(("question", "claim", "headline", "product name", "complaint", "recipe title", "bug report"))
    where = rng.choice(("encyclopedia articles", "forum answers", "court records", "reviews", "manuals", "abstracts"))
    return f"Given a {what} of collection {rng.randrange(10**9)}, find the {where} that go with it."
