"""The convolutions in a compiled program, and who computes them."""

import collections
import re

_CONVOLUTION = re.compile(r" convolution\(|custom_call_target=\"(__cudnn\$conv\w*)")
_GROUPS = re.compile(r"feature_group_count=(\d+)")


def count_convolutions(program: str) -> dict[str, int]:
    """How many there are in a program's optimised HLO (``compiled.as_text()``), by kind.

    A kind is who computes it and whether it is depthwise: "convForward, depthwise" and the like for cuDNN's calls,
    "XLA, dense" or "XLA, depthwise" for those that XLA compiles itself. All that have groups count as depthwise.
    """
    counts: collections.Counter[str] = collections.Counter()
    for line in program.splitlines():
        if found := _CONVOLUTION.search(line):
            groups = _GROUPS.search(line)
            grouped = "depthwise" if groups and int(groups[1]) > 1 else "dense"
            counts[f"{(found[1] or 'XLA').removeprefix('__cudnn$')}, {grouped}"] += 1
    return dict(sorted(counts.items()))
