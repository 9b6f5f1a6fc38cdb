"""Images that are held out for testing, where a folder does not say which: chosen by their names alone."""

import base64
import hashlib
import unicodedata
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int32

# Of a name's SHA-256, in the list of those that a net was trained on; base64 makes 8 characters of them.
_BYTES = 6


def choose(names: Sequence[str], labels: Int32[np.ndarray, " n"], share: float) -> Bool[np.ndarray, " n"]:
    """Which images are for testing: of each class ``share`` of them, those whose names' SHA-256 come first.

    ``names`` are CLASS/PATH, with slashes. The same names are always divided in the same way. A class of two images or
    more has at least one in both parts, and the one image of a smaller class is for training.
    """
    held_out = np.zeros(len(names), bool)
    digests = [_digest(name) for name in names]
    for label in np.unique(labels):
        rows = sorted(np.flatnonzero(labels == label), key=lambda row: digests[row])
        count = min(max(round(share * len(rows)), 1), len(rows) - 1)
        held_out[rows[:count]] = True
    return held_out


def to_text(names: Sequence[str]) -> str:
    """The names as a text of 8 characters each, for a net's file: by it ``which_of`` knows them again."""
    return base64.b64encode(b"".join(sorted(_digest(name)[:_BYTES] for name in names))).decode()


def which_of(names: Sequence[str], text: str) -> Bool[np.ndarray, " n"]:
    """Which of these names are among those that ``to_text`` made the text of.

    Raises:
        ValueError: it is no such text.
    """
    digests = _digests(text)
    return np.array([_digest(name)[:_BYTES] in digests for name in names], bool)


def in_both(one: str, other: str) -> int:
    """How many names two such texts share.

    Raises:
        ValueError: one is no such text.
    """
    return len(_digests(one) & _digests(other))


def together(one: str, other: str) -> str:
    """The names of two such texts as one.

    Raises:
        ValueError: one is no such text.
    """
    return base64.b64encode(b"".join(sorted(_digests(one) | _digests(other)))).decode()


def _digests(text: str) -> set[bytes]:
    try:
        known = base64.b64decode(text, validate=True)
    except ValueError:
        known = b"?"
    if len(known) % _BYTES:
        raise ValueError("its trained_on is not a list of images; the file is damaged or altered")
    return {known[start : start + _BYTES] for start in range(0, len(known), _BYTES)}


def _digest(name: str) -> bytes:
    # As in the names of classes: the same however a system writes its letters.
    return hashlib.sha256(unicodedata.normalize("NFC", name).encode("utf-8", "surrogateescape")).digest()
