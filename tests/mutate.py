"""Do the tests notice a change of the code? ``python -m tests.mutate convert/mapping.py`` makes small changes to a
module, one at a time, and prints those that its tests let pass; ``docs/development.md`` says what came of it.

Needs cosmic-ray, which is on PyPI. It works on a copy of the project in ``--folder``; the same command goes on there.
"""

import argparse
import json
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from cosmic_ray.work_db import use_db
from cosmic_ray.work_item import (
    MutationSpec,
    TestOutcome,
    WorkerOutcome,
    WorkResult,
)

ROOT = Path(__file__).parent.parent

# For each module the quickest tests that concern it, as arguments of pytest.
TESTS = {
    "convert/mapping.py": "tests/test_convert.py tests/test_convert_refusals.py tests/test_convert_advice.py "
    "tests/test_convert_properties.py -k 'familys_own or mapping_knows or any_architecture or 1x1 or other_stems or "
    "stems_of_one_channel or other_heads and seed or test_files and (missing or extra or shaped or head or kernel or "
    "stage or count)'",
    "convert/evidence/choices.py": "tests/test_convert_evidence.py tests/test_convert_wrappers.py "
    "tests/test_convert_detectors.py tests/test_convert_whole_modules.py -k 'statistics and not images or "
    "stem_is_an_option or cifar_stem or activation or other_shuffle'",
    "convert/evidence/statistics.py": "tests/test_convert_evidence.py -k 'statistics and not images or graph or noise'",
    "convert/evidence/images.py": "tests/test_convert_evidence.py -k 'images or channels_that or bias'",
    "flax_shufflenet/ops/rounding.py": "tests/test_kernels.py tests/test_ops.py -k 'norm or bfloat16 or variance or "
    "one_over'",
    "flax_shufflenet/ops/linear.py": "tests/test_kernels.py -k linear",
    "flax_shufflenet/ops/divided.py": "tests/test_kernels.py -k 'divided or own_images'",
    "flax_shufflenet/ops/batch_norm.py": "tests/test_kernels.py tests/test_ops.py -k 'norm or variance or relu_passes'",
    "flax_shufflenet/ops/convolution.py": "tests/test_kernels.py tests/test_ops.py -k 'not norm and not unit and not "
    "branches and not join and not linear'",
    "flax_shufflenet/ops/units.py": "tests/test_ops.py tests/test_ops_bfloat16.py tests/test_blocks.py -k 'units or "
    "joins or sums_and or block_in_train and 7'",
    "flax_shufflenet/ops/blocks.py": "tests/test_blocks.py -k 'block_in_train and 7'",
    "flax_shufflenet/ops/branch.py": "tests/test_ops.py tests/test_inference.py -k 'branches or same_function and "
    "(seed or LeakyReLU)'",
    "flax_shufflenet/ops/native.py": "tests/test_ops.py tests/test_ops_bfloat16.py tests/test_kernels.py "
    "tests/test_versions.py -k 'runs or build or mixed or other_dtypes or vmap or units_of_some or second_order'",
    "flax_shufflenet/layers.py": "tests/test_blocks.py tests/test_model.py tests/test_initialisation.py -k 'batch_norm "
    "or convolution_with or carry or block_in_train and 7 and (basic-12 or down-3) or block_in_eval and split or plain "
    "or leaky or dropout or standard'",
}
# Changes that no test could notice, or every test would: other types' operators, "is" of numbers, jit left out.
LEFT_OUT = r"Replace(Binary|Unary)Operator.*(Shift|Bit|Invert)|ReplaceComparison.*(?<!_Is)_Is(Not)?$"
LEFT_OUT += r"|ReplaceComparisonOperator_Is(Not)?_(Eq|NotEq|Lt|Gt)|RemoveDecorator"


def prepare(folder: Path, module: str, places: int) -> tuple[Path, Path]:
    """cosmic-ray's configuration, and its session with one change at each of so many places, drawn with seed 0."""
    config, session = (folder / f"{Path(module).stem}.{kind}" for kind in ("toml", "sqlite"))
    command = f"{sys.executable} -m pytest -x -q -p no:cacheprovider {TESTS[module]}"
    settings = {"module-path": module, "timeout": 600.0, "test-command": command, "excluded-modules": []}
    lines = ["[cosmic-ray]", *(f"{key} = {json.dumps(value)}" for key, value in settings.items())]
    config.write_text("\n".join([*lines, "[cosmic-ray.distributor]", 'name = "local"', ""]))
    if not session.exists():
        subprocess.run(["cosmic-ray", "init", config.name, session.name], cwd=folder, check=True)
        with use_db(session) as db:
            drawn = _draw([item.mutations[0] for item in db.work_items], places)
            others = [item.job_id for item in db.work_items if item.mutations[0] not in drawn]
            db.set_multiple_results(others, WorkResult(worker_outcome=WorkerOutcome.SKIPPED))
    return config, session


def _draw(changes: list[MutationSpec], places: int) -> list[MutationSpec]:
    at = defaultdict(list)
    for change in changes:
        if not re.search(LEFT_OUT, change.operator_name):
            at[change.start_pos].append(change)
    seeded = random.Random(0)
    one_each = [seeded.choice(at[place]) for place in sorted(at)]
    return seeded.sample(one_each, min(places, len(one_each)))


def report(module: str, session: Path) -> None:
    with use_db(session) as db:
        results = [result for _, result in db.results if result.worker_outcome is not WorkerOutcome.SKIPPED]
    survivors = [result for result in results if result.test_outcome is not TestOutcome.KILLED]
    for each in survivors:
        print(each.diff)
    print(f"{module}: {len(results)} changes, {len(results) - len(survivors)} noticed")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.mutate", description=__doc__)
    parser.add_argument("module", choices=TESTS)
    parser.add_argument("--places", type=int, default=20, help="how many changes at most")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "mutated", help="for the copy")
    options = parser.parse_args()
    if not options.folder.exists():
        shutil.copytree(ROOT, options.folder, ignore=shutil.ignore_patterns(".*", "__pycache__", "results"))
    config, session = prepare(options.folder, options.module, options.places)
    subprocess.run(["cosmic-ray", "exec", config.name, session.name], cwd=options.folder, check=True)
    report(options.module, session)


if __name__ == "__main__":
    main()
