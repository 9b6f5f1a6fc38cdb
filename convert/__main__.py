"""``flax-shufflenet convert`` and ``python -m convert``: a PyTorch checkpoint to Flax, a Flax net to PyTorch, or one
PyTorch layout to another."""

import sys

from convert.options import Options
from flax_shufflenet.commands.command_line import run


def convert(options: Options) -> int:
    """Returns 0.

    Raises:
        ConvertError: nothing was written; the message is one line.
    """
    # Torch and JAX take seconds to import, --help should not.
    from convert.job import run as run_job
    from flax_shufflenet.system.platforms import check_platforms

    check_platforms()
    run_job(options)
    return 0


def main(program: str = "flax-shufflenet convert") -> int:
    return run(program, Options, convert, interrupted="interrupted; nothing was written")


if __name__ == "__main__":
    sys.exit(main("python -m convert"))
