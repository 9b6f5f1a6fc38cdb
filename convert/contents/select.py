"""Finding the ShuffleNetV2 in a file's content: behind which wrapper and prefix, in which layout, with what head."""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from convert.contents import misfits, parametrised
from convert.contents.other_content import explain, text_of
from convert.contents.parametrised import Parametrised, under_plain_names
from convert.contents.pruning import apply_masks, masked_names
from convert.contents.tensors import check_values, is_count
from convert.errors import ConvertError, listing, printable
from convert.evidence.choices import STEMS, Activation, Shuffle, Stem, decide
from convert.files import whole_modules
from convert.files.whole_modules import WholeModule
from convert.layouts import LAYOUTS, Layout
from convert.mapping import Tensors, infer_architecture, torch_names
from flax_shufflenet import Architecture

_MAX_DEPTH = 8
_MAX_NETS = 100

# Counters that profilers and averaging leave among a net's buffers.
_BYSTANDERS = ("total_ops", "total_params", "n_averaged")

# Parts of the names that trainers have for averaged weights.
_AVERAGES = {"avg", "ema", "emamodel", "modelema", "netema", "averaged", "swa"}


@dataclass(frozen=True)
class Net:
    """One ShuffleNetV2's tensors under its layout's own names, and what finding it took."""

    layout: Layout
    architecture: Architecture
    tensors: dict[str, torch.Tensor]
    notes: tuple[str, ...]
    """What the file leaves open or had beside the net, for the report."""
    counts_absent: frozenset[str]
    """Names of the num_batches_tracked that the file has not; zeros stand for them."""


@dataclass(frozen=True)
class _Candidate:
    """A mapping in the content that holds a net of some layout, after a prefix."""

    where: str
    tensors: dict[str, torch.Tensor]
    layout: Layout
    prefix: str
    parametrised: Mapping[str, Parametrised]
    module: WholeModule | None = None
    """The module whose tensors they are, where it was pickled whole."""
    pruned: str | None = None
    """What became of masks, for the report."""

    @property
    def is_average(self) -> bool:
        parts = self.place.lower().replace("_", ".").split(".")
        return not _AVERAGES.isdisjoint(parts)

    @property
    def net_prefix(self) -> str:
        """What stands before the head's name too."""
        return self.prefix.removesuffix(self.layout.root)

    @property
    def place(self) -> str:
        return f"{self.where}.{self.prefix}".strip(".") or "top level"


def find_net(
    content: Any,
    *,
    stem: Stem | None = None,
    activation: Activation | None = None,
    shuffle: Shuffle | None = None,
    epsilon: float | None = None,
    use_ema: bool = False,
    backbone: bool = False,
    key: str | None = None,
) -> Net:
    """The one net that a file's content holds.

    Args:
        content: nested mappings, as ``convert.files.read.read`` gives them, or a state_dict.
        stem: what the first layers do where the tensors cannot tell (torchvision's and chenyaofo's names).
        activation: what stands behind the convolutions where the tensors cannot tell (NanoDet's backbones).
        shuffle: how blocks shuffle where the tensors cannot tell (pytorchcv's shufflenetv2b).
        epsilon: what batch normalisations add to the variance, which a module's layers alone tell.
        use_ema: take the averaged weights that a trainer keeps beside the model.
        backbone: leave out the head and everything else that is not the backbone.
        key: take the net at this place, where a file holds several.

    Raises:
        ConvertError: no net, several nets, tensors left over, or values that no net has.
    """
    if epsilon is not None and not 0 < epsilon < 1:
        raise ConvertError(f"--epsilon must be between 0 and 1, such as 1e-5, not {epsilon:g}")
    candidates = list(islice(_candidates(content), _MAX_NETS + 1))
    if len(candidates) > _MAX_NETS:
        raise ConvertError(f"holds more than {_MAX_NETS} nets; save the state_dict() of the one you want alone")
    candidate = _choose(candidates, content, use_ema, key)
    layout = candidate.layout
    for option, value, own, whose in (
        ("stem", stem, ("chenyaofo", "nanodet"), "torchvision's and chenyaofo's names"),
        ("activation", activation, ("nanodet",), "NanoDet's backbones"),
        ("shuffle", shuffle, ("pytorchcv_b",), "pytorchcv's shufflenetv2b"),
    ):
        if value is not None and layout.name not in own:
            raise ConvertError(f"--{option} is for {whose}; this is a {layout.called} checkpoint, leave it out")
    notes = [f"found at: {printable(candidate.place, 200)}"]
    if candidate.pruned is not None:
        notes.append(candidate.pruned)
    siblings = [other for other in candidates if other.where == candidate.where]
    own = _own_tensors(candidate, siblings, alone=key is not None)
    if beside := len(candidate.tensors) - len(own):
        notes.append(f"left out: {beside} tensors beside the net")
    tensors, head_notes, absent = _take(candidate, own, backbone)
    if any(is_count(name) and tensor.is_floating_point() for name, tensor in tensors.items()):
        notes.append("num_batches_tracked is stored as floating-point; made whole numbers")
    tensors = check_values(tensors)
    layout, architecture, choices = decide(
        layout,
        tensors,
        stem=stem,
        activation=activation,
        shuffle=shuffle,
        module_stems=() if candidate.module is None else _stems_of_layers(candidate.module, candidate, stem),
        in_detector=_is_in_detector(candidate),
    )
    if candidate.module is not None:
        architecture, told = whole_modules.apply_to(candidate.module, layout, architecture, candidate.prefix)
        settled = {_subject(note) for note in told}
        for option, value, subject in (("activation", activation, "rectifier"), ("shuffle", shuffle, "shuffle")):
            if value is not None and subject in settled:
                raise ConvertError(f"--{option} {value}: the module's own layers say which it is; leave it out")
        choices = [*(note for note in choices if _subject(note) not in settled), *told]
    if "epsilon" not in map(_subject, choices):
        how = "as given by --epsilon"
        if epsilon is None:
            epsilon = architecture.bn_epsilon
            how = "assumed, as usual in this layout; the tensors cannot tell (--epsilon)"
        architecture = dataclasses.replace(architecture, bn_epsilon=epsilon)
        choices.append(f"epsilon: {epsilon:g}, {how}")
    elif epsilon is not None:
        raise ConvertError(f"--epsilon {epsilon:g}: the module's own layers say which it is; leave it out")
    return Net(layout, architecture, tensors, (*notes, *choices, *head_notes), absent)


def _mappings(
    content: Any, where: str = "", depth: int = 0, seen: set[int] | None = None
) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Every mapping in the content once, with the dotted path to it."""
    seen = set() if seen is None else seen
    if id(content) in seen or depth > _MAX_DEPTH:
        return
    if isinstance(content, Mapping):
        items = content.items()
    elif isinstance(content, list | tuple):
        items = enumerate(content)
    else:
        return
    seen.add(id(content))
    if isinstance(content, Mapping):
        yield where, content
    for key, value in items:
        if isinstance(value, Mapping | list | tuple):
            yield from _mappings(value, f"{where}.{printable(text_of(key), 100)}".lstrip("."), depth + 1, seen)


def _candidates(content: Any) -> Iterator[_Candidate]:
    for where, mapping in _mappings(content):
        stored = {key: value for key, value in mapping.items() if isinstance(key, str) and torch.is_tensor(value)}
        tensors, stored_otherwise = under_plain_names(stored)
        plain = {**tensors, **{name: tensors[f"{name}_orig"] for name in masked_names(tensors)}}
        module = mapping if isinstance(mapping, WholeModule) else None
        for layout in LAYOUTS.values():
            if layout.name in ("torchvision", "nanodet", "openpifpaf"):
                continue  # they have chenyaofo's names; _of_chenyaofos_names and decide tell them apart
            for name in plain:
                if name == layout.fingerprint or name.endswith(f".{layout.fingerprint}"):
                    prefix = name.removesuffix(layout.fingerprint)
                    own = _of_chenyaofos_names(plain, prefix) if layout.name == "chenyaofo" else layout
                    yield _Candidate(where, tensors, own, prefix, stored_otherwise, module)


def _of_chenyaofos_names(tensors: Tensors, prefix: str) -> Layout:
    """A net that ends after its last stage, or whose last convolution is part of it, is a detector's backbone; one with
    OpenPifPaf's name for the stem is a pose net's."""
    if f"{prefix}{LAYOUTS['openpifpaf'].stem[0]}.weight" in tensors:
        return LAYOUTS["openpifpaf"]
    has_last = any(name.startswith(f"{prefix}conv5.") for name in tensors)
    return LAYOUTS["chenyaofo" if has_last else "nanodet"]


def _choose(candidates: list[_Candidate], content: Any, use_ema: bool, key: str | None) -> _Candidate:
    if not candidates:
        items = [(text_of(key), value) for _, mapping in _mappings(content) for key, value in mapping.items()]
        raise ConvertError(explain(content, items))
    if key is not None:
        chosen = [candidate for candidate in candidates if candidate.place == key.strip(".")]
        if not chosen:
            places = listing([candidate.place for candidate in candidates])
            raise ConvertError(f"no ShuffleNetV2 at --key {key}; there is one at: {places}")
        if use_ema and not chosen[0].is_average:
            raise ConvertError(f"--use_ema: by its name, what is at --key {key} is not averaged; leave one of them out")
    else:
        chosen = [candidate for candidate in candidates if candidate.is_average == use_ema]
        if not chosen:
            if use_ema:
                raise ConvertError("--use_ema: there are no averaged weights in this file; leave it out")
            chosen = candidates  # a file of averaged weights alone
    if len(chosen) > 1:
        places = [candidate.place for candidate in chosen]
        if len({*places}) == 1:
            raise ConvertError(
                f"holds {len(chosen)} nets at {listing(places[:1])}, which --key cannot tell apart; save the "
                "state_dict() of the one you want alone"
            )
        raise ConvertError(f"holds {len(chosen)} nets; choose one with --key: {listing(places, shown=8)}")
    tensors, pruned = apply_masks(chosen[0].tensors)
    return dataclasses.replace(chosen[0], tensors=tensors, pruned=pruned)


def _own_tensors(candidate: _Candidate, siblings: list[_Candidate], alone: bool) -> dict[str, torch.Tensor]:
    """The tensors that may be this net's and no other's in the same mapping; ``alone``: only those after its prefix."""
    mine = candidate.net_prefix
    prefixes = {mine, *(other.net_prefix for other in siblings)}

    def is_mine(name: str) -> bool:
        # A head may stand outside the prefix, so what follows no net's prefix may belong to this one.
        outside = "" if alone else mine
        return max((prefix for prefix in prefixes if name.startswith(prefix)), key=len, default=outside) == mine

    return {name: tensor for name, tensor in candidate.tensors.items() if is_mine(name)}


def _take(
    candidate: _Candidate, own: Tensors, backbone: bool
) -> tuple[dict[str, torch.Tensor], list[str], frozenset[str]]:
    """The net's tensors under the layout's own names; notes on the head and on what was left; the counts that are
    absent."""
    layout = candidate.layout
    headless, trunk = _headless(candidate, own)
    names = set(torch_names(layout, headless).values())
    found, rest = {}, {}
    for name, tensor in own.items():
        own_name = _own_name(candidate, name)
        if own_name in names:
            found[own_name] = tensor
        else:
            rest[name] = tensor
    parametrised.check_none([name for name in own if name not in rest], candidate.parametrised)
    misfits.check_normalisations(layout, headless, trunk)
    notes = _drop_bystanders(rest)
    inside = misfits.tensors_inside(layout, headless, candidate.prefix, rest)
    if inside:
        misfits.refuse_inside(layout, headless, candidate.prefix, inside)
    absent, said = _fill_counts(found, names)
    notes += said
    if not backbone:
        notes += _take_head(found, rest, candidate, headless.features_width)
    elif rest:
        notes.append(f"left out: {len(rest)} tensors that are not the backbone's ({listing(list(rest))})")
    if f"{layout.head}.weight" not in found:
        notes.append("no head: the net returns its pooled features")
    return found, notes, absent


def _own_name(candidate: _Candidate, name: str) -> str | None:
    """The layout's own name; None for what is not after the net's prefix."""
    prefix = candidate.prefix
    return candidate.layout.root + name.removeprefix(prefix) if name.startswith(prefix) else None


def _headless(candidate: _Candidate, own: Tensors) -> tuple[Architecture, dict[str, torch.Tensor]]:
    """The architecture without its classifier, and what stands after the prefix but for that, under its own names."""
    layout = candidate.layout
    named = {own_name: tensor for name, tensor in own.items() if (own_name := _own_name(candidate, name))}
    trunk = {name: tensor for name, tensor in named.items() if not name.startswith(f"{layout.head}.")}
    return dataclasses.replace(infer_architecture(layout, trunk), num_classes=0), trunk


def _drop_bystanders(rest: dict[str, torch.Tensor]) -> list[str]:
    """Takes them out of ``rest``; returns a note of them."""
    dropped = [name for name in rest if name.rpartition(".")[2] in _BYSTANDERS]
    for name in dropped:
        del rest[name]
    return [f"left out: {listing(dropped)}"] if dropped else []


def _fill_counts(found: dict[str, torch.Tensor], names: set[str]) -> tuple[frozenset[str], list[str]]:
    """Adds zeros where no batches were counted, as old PyTorch versions and frozen layers do not; where that was, and a
    note."""
    counts = {name for name in names if is_count(name)}
    absent = frozenset(counts - found.keys())
    found.update({name: torch.tensor(0) for name in absent})
    if not absent:
        return absent, []
    which = (
        f" for {len(absent)} of {len(counts)} batch normalisations, as if they were frozen" if absent < counts else ""
    )
    return absent, [f"the file has no num_batches_tracked{which}; zeros stand for them"]


def _take_head(
    found: dict[str, torch.Tensor], rest: dict[str, torch.Tensor], candidate: _Candidate, features: int
) -> list[str]:
    """Moves the head's tensors from ``rest`` to ``found``; returns a note where its name is not the usual one.

    Raises:
        ConvertError: something else is left, or the head is parametrised.
    """
    layout = candidate.layout
    head = _find_head(rest, layout, candidate.net_prefix, features)
    parametrised.check_none(head.values(), candidate.parametrised)
    for own_name, name in head.items():
        found[own_name] = rest.pop(name)
    if rest:
        misfits.refuse_leftovers(layout, candidate.net_prefix, candidate.place, list(rest), list(head.values()))
    usual = candidate.net_prefix + layout.head
    taken = head[f"{layout.head}.weight"].removesuffix(".weight") if head else usual
    if taken == usual:
        return []
    return [f"head: {printable(taken, 200)}, the one linear layer that fits ({usual} in this layout)"]


def _find_head(rest: Tensors, layout: Layout, net_prefix: str, features: int) -> dict[str, str]:
    """The head's tensors, own name to found name: under its usual name, or the one linear layer that fits."""
    head = net_prefix + layout.head
    if f"{head}.weight" not in rest:
        fitting = [
            name.removesuffix(".weight")
            for name, tensor in rest.items()
            if name.endswith(".weight") and tensor.ndim == 2 and tensor.shape[1] == features
        ]
        if len(fitting) != 1:
            return {}
        (head,) = fitting
    return {f"{layout.head}.{kind}": f"{head}.{kind}" for kind in ("weight", "bias") if f"{head}.{kind}" in rest}


def _subject(note: str) -> str:
    return note.partition(":")[0]


def _stems_of_layers(module: WholeModule, candidate: _Candidate, stem: Stem | None) -> tuple[Stem, ...]:
    """The stems that a whole module's own first layers leave possible: a max-pool in its ``forward`` is no layer.

    Raises:
        ConvertError: no net has such first layers, or --stem says something else.
    """
    stride, has_max_pool = whole_modules.stem_of(module, candidate.layout, candidate.prefix)
    if stride is None or candidate.layout.name not in ("chenyaofo", "nanodet"):
        return ()
    found = tuple(name for name, (s, pool) in STEMS.items() if s == stride and (pool or not has_max_pool))
    if not found:
        raise ConvertError(f"its first convolution has stride {stride}, which no layout with these names has")
    if stem is not None and stem not in found:
        pool = " and a max-pool follows" if has_max_pool and STEMS[stem][0] == stride else ""
        raise ConvertError(f"--stem {stem}: the module's own first convolution has stride {stride}{pool}; leave it out")
    return found


def _is_in_detector(candidate: _Candidate) -> bool:
    """Whether the rest of a NanoDet stands beside the backbone."""
    around = candidate.prefix.removesuffix("backbone.")
    return any(name.startswith((f"{around}fpn.", f"{around}head.")) for name in candidate.tensors)
