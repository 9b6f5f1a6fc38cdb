"""Choices that a checkpoint's names and shapes leave open: as given, as its running statistics say, or as assumed."""

import dataclasses
from typing import Any, Literal, NamedTuple

import torch

from convert.errors import ConvertError
from convert.evidence import statistics
from convert.evidence.statistics import Evidence, Hypothesis
from convert.layouts import LAYOUTS, Layout
from convert.mapping import check_names_and_shapes, infer_architecture
from flax_shufflenet import Architecture
from flax_shufflenet.architecture import family_fields

Stem = Literal["cifar", "imagenet", "strided", "pooled"]
Activation = Literal["relu", "leaky_relu"]
Shuffle = Literal["after", "reverse"]

_NANODETS_SLOPE = family_fields("nanodet")["negative_slope"]

STEMS: dict[Stem, tuple[int, bool]] = {
    "cifar": (1, False),
    "imagenet": (2, True),
    "strided": (2, False),
    "pooled": (1, True),
}
"""Stride of the first convolution, and whether a max-pool follows. Running statistics tell the max-pool alone."""


class Assumption(NamedTuple):
    """What is taken where neither the user nor the statistics say anything, and why; "usual" is what a given choice is
    compared with, None where there is no usual one."""

    choice: str
    why: str
    usual: str | None


class Question(NamedTuple):
    """A choice between two graphs; the dictionaries have the option's two values, in the same order."""

    option: str
    subject: str
    """What the report calls it."""
    described: dict[str, str]
    """In the report's words."""
    graphs: dict[str, tuple[str, dict[str, Any]]]
    """The layout of each, and the fields of the architecture that are its own."""
    risk: str
    where: str
    """The 1x1 convolution whose means tell the two apart, by its Flax name."""

    def hypotheses(self, architecture: Architecture) -> dict[str, Hypothesis]:
        """Both graphs, for a net of this architecture but for the choice."""
        return {
            choice: Hypothesis(LAYOUTS[layout], dataclasses.replace(architecture, **fields))
            for choice, (layout, fields) in self.graphs.items()
        }


_DESCRIBED: dict[Stem, str] = {
    "cifar": "cifar (stride 1)",
    "imagenet": "imagenet (stride 2 and a max-pool)",
    "strided": "strided (stride 2, no max-pool)",
    "pooled": "pooled (stride 1 and a max-pool)",
}


def _stem_fields(stem: Stem) -> dict[str, Any]:
    stride, pool = STEMS[stem]
    return {"stem_stride": stride, "stem_pool": pool}


STEM = Question(
    "stem",
    "stem",
    {"cifar": _DESCRIBED["cifar"], "imagenet": _DESCRIBED["imagenet"]},
    {
        "cifar": ("chenyaofo", _stem_fields("cifar")),
        "imagenet": ("torchvision", _stem_fields("imagenet")),
    },
    "the wrong stem ruins the accuracy",
    statistics.AFTER_THE_STEM,
)
ACTIVATION = Question(
    "activation",
    "rectifier",
    {"relu": "ReLU", "leaky_relu": f"LeakyReLU of slope {_NANODETS_SLOPE:g}"},
    {
        "relu": ("nanodet", {"negative_slope": 0.0}),
        "leaky_relu": ("nanodet", {"negative_slope": _NANODETS_SLOPE}),
    },
    "the wrong one costs accuracy",
    statistics.AFTER_A_SHUFFLE,
)
SHUFFLE = Question(
    "shuffle",
    "shuffle",
    {"after": "the first half with the second", "reverse": "the other way round"},
    {choice: ("pytorchcv_b", {"shuffle": choice}) for choice in ("after", "reverse")},
    "the wrong one ruins the accuracy",
    statistics.AFTER_A_SHUFFLE,
)
QUESTIONS = {"chenyaofo": STEM, "nanodet": ACTIVATION, "pytorchcv_b": SHUFFLE}
"""By the layout that the names tell."""


def decide(
    layout: Layout,
    tensors: dict[str, torch.Tensor],
    *,
    stem: Stem | None,
    activation: Activation | None,
    shuffle: Shuffle | None,
    module_stems: tuple[Stem, ...],
    in_detector: bool,
) -> tuple[Layout, Architecture, list[str]]:
    """The layout and the architecture of a net's tensors, and a note for the report on each choice that was open.

    Args:
        layout: as the names tell; "chenyaofo" stands for torchvision too, whose names are the same.
        tensors: the net's, all of them, with plain finite values.
        stem, activation, shuffle: as the user gives them, where the layout leaves them open.
        module_stems: the stems that a whole module's own layers leave possible; none where there are no layers.
        in_detector: whether the file holds the rest of a detector.

    Raises:
        ConvertError: the tensors do not make a net of this layout, or a module's stem cannot be told.
    """
    architecture = infer_architecture(layout, tensors)
    check_names_and_shapes(layout, architecture, tensors)
    question = QUESTIONS.get(layout.name)
    if question is None:
        return layout, architecture, []
    if question is STEM:
        pair = tuple(question.hypotheses(architecture).values())
        choice, reason = _decide_stem(pair, tensors, stem, module_stems, _assumed_stem(architecture.num_classes))
        layout = LAYOUTS["chenyaofo" if choice == "cifar" else "torchvision"]
        architecture = dataclasses.replace(architecture, **_stem_fields(choice))
        return layout, architecture, [f"stem: {_DESCRIBED[choice]}, {reason}"]
    if question is ACTIVATION:
        given, assumption = activation, _assumed_activation(in_detector or bool(architecture.last_width))
    else:
        given = shuffle
        assumption = Assumption("after", "as in the published nets (reverse is shuffle_group_first=False)", None)
    hypotheses = question.hypotheses(architecture)
    first, second = hypotheses.values()
    found = statistics.weigh(first, second, tensors, question.where)
    choice, reason = _choose(question, given, assumption, found)
    layout, architecture = hypotheses[choice]
    notes = [f"{question.subject}: {question.described[choice]}, {reason}"]
    if question is ACTIVATION:  # NanoDet's nets have torchvision's names, and so may have either stem
        stems: tuple[Stem, Stem] = ("cifar", "imagenet")
        pair = tuple(Hypothesis(layout, dataclasses.replace(architecture, **_stem_fields(one))) for one in stems)
        own_stem = Assumption("imagenet", "as NanoDet's own nets have it", "imagenet")
        chosen, reason = _decide_stem(pair, tensors, stem, module_stems, own_stem)
        architecture = dataclasses.replace(architecture, **_stem_fields(chosen))
        notes.append(f"stem: {_DESCRIBED[chosen]}, {reason}")
    return layout, architecture, notes


def _decide_stem(
    pair: tuple[Hypothesis, ...],
    tensors: dict[str, torch.Tensor],
    given: Stem | None,
    of_module: tuple[Stem, ...],
    assumption: Assumption,
) -> tuple[Stem, str]:
    """The stem of a net with torchvision's names, and the reason for it in one sentence; ``pair`` is the net without a
    max-pool, and with one.

    Raises:
        ConvertError: a whole module has no max-pool among its layers, and its statistics do not say whether it pools.
    """
    if len(of_module) == 1:
        return of_module[0], "as the module has it"
    first, second = pair
    found = statistics.weigh(first, second, tensors, STEM.where)
    says = None if found is None or found.says is None else bool(found.says)
    if of_module and given is None:
        with_pool, without_pool = sorted(of_module, key=lambda stem: not STEMS[stem][1])
        stride = STEMS[without_pool][0]
        if says:
            assert found is not None
            means = _place(found, tuple(STEM.described))
            return with_pool, f"as its running statistics say, though no layer of the module is a max-pool: {means}"
        if says is None and stride == 2:
            raise ConvertError(
                "no max-pool is among the module's layers, and its running statistics do not say whether its forward "
                "pools behind the first convolution: --stem imagenet if it does, --stem strided if not"
            )
        return without_pool, "as the module has it"
    # The question has two answers, with and without a max-pool.
    as_answered = None if given is None else "imagenet" if STEMS[given][1] else "cifar"
    choice, reason = _choose(STEM, as_answered, assumption, found)
    if given is not None:
        return given, reason
    if says is None:
        return "cifar" if choice == "cifar" else "imagenet", reason
    if says:
        return "imagenet", f"{reason}; they tell the max-pool, not the stride: --stem pooled for stride 1"
    if first.architecture.num_classes:
        return "cifar", f"{reason}; they tell that no max-pool follows, not the stride: --stem strided for stride 2"
    return "strided", (
        f"{reason}; they tell that no max-pool follows, not the stride, which is assumed for a net without classes: "
        "--stem cifar for stride 1"
    )


def _assumed_stem(classes: int) -> Assumption:
    choice: Stem = "cifar" if classes in (10, 100) else "imagenet"
    if not classes:
        return Assumption(choice, "there is no class count to go by", None)
    return Assumption(choice, f"from its {classes} {'class' if classes == 1 else 'classes'}", choice)


def _assumed_activation(detector: bool) -> Assumption:
    if detector:
        return Assumption("leaky_relu", "NanoDet's published detectors have it", None)
    return Assumption("relu", "for a lone backbone; NanoDet's detectors have leaky_relu", None)


def _place(found: Evidence, names: tuple[str, ...]) -> str:
    return f"its means lie at {found.place:.2f}, on a line from 0 for {names[0]} to about 1 for {names[1]}"


def _choose(question: Question, given: str | None, assumption: Assumption, found: Evidence | None) -> tuple[str, str]:
    """The choice, and the reason for it in one sentence."""
    names = tuple(question.described)
    says = None if found is None or found.says is None else names[found.says]
    option = f"--{question.option}"

    def other(choice: str) -> str:
        return names[1 - names.index(choice)]

    if says is not None:
        assert found is not None
        means = _place(found, names)
        if given is None:
            return says, f"as its running statistics say: {means}"
        if given == says:
            return given, f"as given by {option}; its running statistics agree: {means}"
        return given, (
            f"as given by {option}, but its running statistics speak against it: {means}; "
            f"{question.risk}: {option} {says} if it is low"
        )
    neither = ""
    if found is not None and not found.fits:
        neither = (
            f", which fit neither (explained: {max(found.explained, 0):.0%}), as if its layers computed something else"
        )
    silent = f"the tensors cannot tell, nor do its running statistics{neither}, and {question.risk}"
    if given is None:
        choice = assumption.choice
        return choice, f"assumed {assumption.why}; {silent}: {option} {other(choice)} if it is low"
    if assumption.usual in (None, given):
        return given, f"as given by {option}"
    return given, (
        f"as given by {option}, but unusual ({assumption.usual} would be assumed {assumption.why}); {silent}: "
        f"{option} {assumption.usual} if it is low"
    )
