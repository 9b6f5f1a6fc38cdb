"""Compiling that takes less time and gives the same function, and how to compile as users do in spite of it."""

from importlib.metadata import version

_HAS_TWO_GENERATORS = tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11)

XLA_FLAGS = "--xla_cpu_use_fusion_emitters=false" if _HAS_TWO_GENERATORS else ""
"""XLA's older code generator for the CPU is ready in two thirds of the time; jaxlib 0.12 has the newer one alone."""

AS_USERS_DO: dict[str, str | bool] = {"xla_cpu_use_fusion_emitters": True} if _HAS_TWO_GENERATORS else {}
"""``compiler_options`` that undo ``XLA_FLAGS`` for one program."""
