"""The description of a program whose format has no place for it: model.json, beside the program."""

from trainonce.export.description import FileDescription
from trainonce.export.seal import Seal

FILE = "model.json"
LAST_KEY = "sha256_with_program"
SEAL = Seal(head=f', "{LAST_KEY}": "'.encode(), tail=b'"}')
"""The end of the description; the hash is of what is before it and then of the program."""


def beside(program: bytes, description: FileDescription) -> bytes:
    """The description of a program, sealed together with it."""
    text = description.to_text()
    return SEAL.put(text.removesuffix(f', "{LAST_KEY}": null}}').encode(), program)
