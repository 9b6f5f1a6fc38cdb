"""Compiling that takes less time and gives the same function, and how to compile as users do in spite of it."""

from importlib.metadata import version

_HAS_TWO_GENERATORS = tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11)

_FEW_PARTS = "--xla_cpu_parallel_codegen_split_count=4"
"""XLA divides a program's code among threads that compile it. By default it makes 32 parts, which take a fifth more of
the CPUs' time, and the workers keep the CPUs busy anyway."""

_OLDER_GENERATOR = "--xla_cpu_use_fusion_emitters=false"
"""XLA's older code generator for the CPU is ready in two thirds of the time; jaxlib 0.12 has the newer one alone."""

XLA_FLAGS = f"{_FEW_PARTS} {_OLDER_GENERATOR}" if _HAS_TWO_GENERATORS else _FEW_PARTS

AS_USERS_DO: dict[str, str | bool] = {"xla_cpu_use_fusion_emitters": True} if _HAS_TWO_GENERATORS else {}
"""``compiler_options`` of one program that undo what ``XLA_FLAGS`` change about the code: not into how many parts it is
divided."""
