"""``flax-shufflenet COMMAND ...`` and, the same, ``python -m flax_shufflenet COMMAND ...``."""

import importlib
import sys

# By name: each imports what it needs, and the converter needs PyTorch, which the library never imports.
COMMANDS = {
    "train": ("flax_shufflenet.commands.train", "train a net, or fine-tune one"),
    "predict": ("flax_shufflenet.commands.predict", "the classes of images"),
    "evaluate": ("flax_shufflenet.commands.evaluate", "accuracy and loss on a test set"),
    "export": ("flax_shufflenet.commands.export", "a file that JAX alone can run"),
    "compare": ("flax_shufflenet.commands.compare", "training runs side by side"),
    "convert": ("convert.__main__", "between PyTorch and Flax, proven by running both"),
}

_HELP = "usage: flax-shufflenet COMMAND [OPTION ...]\n\n" + "".join(
    f"  {name:10}{does}\n" for name, (_, does) in COMMANDS.items()
)


def main() -> int:
    """Returns the command's exit code; 2 if there is no such command."""
    name = sys.argv[1] if len(sys.argv) > 1 else None
    if name in ("-h", "--help"):
        print(_HELP + "\nflax-shufflenet COMMAND --help lists a command's options.")
        return 0
    if name not in COMMANDS:
        print(
            f"flax-shufflenet: {'no command' if name is None else repr(name) + ' is no command'}; "
            f"there are {', '.join(COMMANDS)} (see --help)",
            file=sys.stderr,
        )
        return 2
    del sys.argv[1]
    command = importlib.import_module(COMMANDS[name][0])
    return command.main()


if __name__ == "__main__":
    sys.exit(main())
