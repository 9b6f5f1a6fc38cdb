"""The one kind of error that a file or an option can cause."""


class ConvertError(Exception):
    """What is wrong and what to do, in one line that names the file, the tensor or the option."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message, 2000))


def listing(items: list[str], shown: int = 3) -> str:
    """The first few items, and how many more there are."""
    more = f" and {len(items) - shown} more" if len(items) > shown else ""
    return "; ".join(printable(item, 300) for item in items[:shown]) + more


def printable(text: str, longest: int) -> str:
    """Text from a file or a file's name as one line that no terminal obeys; ends in dots where it was cut."""
    text = text if len(text) <= longest else f"{text[:longest]}..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
