"""The one kind of error that a file or an option can cause."""


class ConvertError(Exception):
    """What is wrong and what to do, in one line that names the file, the tensor or the option."""


def listing(items: list[str], shown: int = 3) -> str:
    """The first few items, and how many more there are."""
    more = f" and {len(items) - shown} more" if len(items) > shown else ""
    return "; ".join(items[:shown]) + more
