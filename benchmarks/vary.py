"""train.py's training with one part exchanged: ``python -m benchmarks.vary lookahead --net_size 0.5 --recipe fast``.

To find out what is worth an option. The part's name is followed by train.py's own options. What it writes is what
train.py writes, with the part's name in the first line of metrics.jsonl; the same command goes on with a run.
"""

import sys
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

from flax_shufflenet.commands import train
from flax_shufflenet.system import allocator

PARTS = (
    "alternating_flip",
    "linear_decay",
    "lookahead",
    "frozen_stem",
    "average_at_the_end",
    "small_first",
)


def main() -> int:
    """Returns train.py's exit code; 2 where the part is none."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in PARTS:
        print(f"vary: the first argument must be one of {', '.join(PARTS)}, not '{name}'", file=sys.stderr)
        return 2
    allocator.restart_with_fast_malloc()
    # Imported here: the program is started again above, and JAX takes seconds.
    from benchmarks import variations
    from flax_shufflenet.training import loop

    def with_name(function: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
        return lambda *given: {**function(*given), "varied": name}

    # What the run says of itself, and what a run has to have in common with one that it goes on with.
    patch.object(loop, "describe_run", with_name(loop.describe_run)).start()
    patch.object(loop, "identity", with_name(loop.identity)).start()
    getattr(variations, name)()
    del sys.argv[1]
    return train.main(f"python -m benchmarks.vary {name}")


if __name__ == "__main__":
    sys.exit(main())
