"""The trained nets that come with the package: found by name, and checked, without a network."""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from flax_shufflenet.other_files import explain_missing

if TYPE_CHECKING:
    from jax.typing import DTypeLike

    from flax_shufflenet.model import ShuffleNetV2

FOLDER = Path(__file__).parent
REGISTRY_FILE = "registry.json"


class ShippedNet(NamedTuple):
    """Files in ``FOLDER``, the SHA-256 that the net's has, and the folder in the repository where its run's log is."""

    file: str
    sha256: str
    card: str
    log: str


def registry() -> dict[str, ShippedNet]:
    """All of them, by name."""
    entries = json.loads((FOLDER / REGISTRY_FILE).read_text(encoding="utf-8"))
    return {name: ShippedNet(**entry) for name, entry in entries.items()}


def pretrained(name: str, *, dtype: "DTypeLike | None" = None) -> "ShuffleNetV2":
    """A trained net that comes with the package, in eval mode; it computes in ``dtype``, by default float32.

    Each has a card beside its file, ``flax_shufflenet/shipped/NAME.md``: data, recipe, what it is worth, limits.

    Raises:
        ValueError: there is none of this name, and the message lists those that there are; or its file is not the one
            that was shipped.
        FileNotFoundError: its file is missing.
    """
    # Imported here: the commands look names up before they wait for JAX.
    from flax_shufflenet.weights import load

    nets = registry()
    if name not in nets:
        raise ValueError(f"no net {name!r} comes with flax_shufflenet, only {', '.join(nets)}")
    return load(_checked(nets[name]), dtype=dtype)


def find(net: Path) -> Path:
    """The file that a command is given as its net: ``net`` itself or, where that is no file but the name of a net that
    comes with the package, that net's.

    Raises:
        FileNotFoundError: it is a mere name, of neither; or the net's file is missing.
        ValueError: the net's file is not the one that was shipped.
    """
    if net.is_file():
        return net
    nets = registry()
    if str(net) in nets:
        return _checked(nets[str(net)])
    if net.name == str(net) and net.suffix != ".safetensors" and not net.exists():
        raise FileNotFoundError(f"{explain_missing(net)}; the package's own nets: {', '.join(nets)}")
    return net


def sha256(path: Path) -> str:
    """That of a file's content, in hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _checked(net: ShippedNet) -> Path:
    path = FOLDER / net.file
    again = "install flax_shufflenet again"
    if not path.is_file():
        raise FileNotFoundError(f"{explain_missing(path)}; {again}")
    found = sha256(path)
    if found != net.sha256:
        raise ValueError(f"{path}: not the file that was shipped, whose SHA-256 is {net.sha256}, not {found}; {again}")
    return path
