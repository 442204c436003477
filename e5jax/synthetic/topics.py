"""What brainstorms are about: a list of topics, one a line, written general to special (`Food > Cooking > bread`).

Tasks seeded with topics are more varied than tasks that a model thinks up by itself: SPEED (arXiv 2410.18634) finds
1.7 points of MTEB between one task a topic and five.
"""

from pathlib import Path

from e5jax.errors import UserError
from e5jax.records import existing


BUILTIN = Path(__file__).with_name("topics.txt")
MAX_CHARACTERS = 300


def load(name: str) -> list[str]:
    """The topics of a file, or of the built-in list for `builtin`; blank lines and repeated topics left out.

    Raises UserError with file:line for what is not UTF-8 or no topic, and for a file without any.
    """
    path = BUILTIN if name == "builtin" else existing(name)
    if not path.is_file():
        raise UserError(f"topics: {path} is not a file; it takes a text file with a topic a line, or builtin")
    topics: dict[str, None] = {}
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        try:
            topic = " ".join(line.decode("utf-8-sig" if number == 1 else "utf-8").split())
        except UnicodeDecodeError as error:
            raise UserError(f"{path}:{number}: not UTF-8 at byte {error.start}") from None
        if len(topic) > MAX_CHARACTERS:
            raise UserError(f"{path}:{number}: {len(topic)} characters, but a topic has {MAX_CHARACTERS} at the most")
        if topic:
            topics[topic] = None
    if not topics:
        raise UserError(f"{path}: no topics; it takes one a line, such as: Food > Cooking > bread")
    return list(topics)
