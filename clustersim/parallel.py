"""How a model is split over GPUs: sizes of the parallel groups, and which ranks form each. No bytes, no clock.

Attention and experts have meshes of their own over the same ranks ("folded", arXiv 2504.14960): tensor, context, data and
pipeline for attention; expert-tensor, expert, expert-data and pipeline for experts. The first named is the fastest to change from
rank to rank, as in Megatron-LM, so tensor groups are neighbours and pipeline stages are far apart.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import gcd, prod
from typing import Any

import numpy as np

from clustersim.pick import did_you_mean
from clustersim.types import InputError, Ints

ATTENTION = ("tensor", "context", "data", "pipeline")
EXPERTS = ("expert_tensor", "expert", "expert_data", "pipeline")
DERIVED = ("expert", "virtual", "sequence_parallel")     # that null leaves to the others
OTHERS = ("order", "stage_layers")      # keys of the config group that are no sizes


@dataclass(frozen=True, slots=True, kw_only=True)
class Parallel:
    """Sizes of the parallel groups; `data` and `expert_data` follow from the number of GPUs."""

    gpus: int
    tensor: int = 1                 # GPUs that share the matrices of attention and dense FFNs
    sequence_parallel: bool = True  # what lies between the parts of a tensor group is split along the sequence
    tensor_overlap: bool = False    # a tensor group gathers and scatters in pieces, beside the products that they are for
    context: int = 1                # GPUs that share a sequence
    pipeline: int = 1               # stages
    virtual: int = 1                # chunks of layers that a stage holds (interleaved pipelines)
    expert: int = 1                 # GPUs over which the experts of a layer are spread
    expert_tensor: int = 1          # GPUs that share the matrices of an expert
    zero: int = 0                   # what data parallel GPUs split: 1 optimiser states, 2 gradients too, 3 weights too

    def __post_init__(self) -> None:
        for field in fields(self):
            value, least = getattr(self, field.name), 0 if field.name == "zero" else 1
            if field.name in ("sequence_parallel", "tensor_overlap"):
                if not isinstance(value, bool):
                    raise InputError(f"parallel.{field.name}={_written(value)}: must be true or false")
            elif isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(f"parallel.{field.name}={_written(value)}: must be a whole number from {least} up")
        if self.tensor_overlap and not self.sequence_parallel:
            raise InputError("parallel.tensor_overlap=true: pieces are a sequence's; needs parallel.sequence_parallel=true")
        if self.zero > 3:
            raise InputError(f"parallel.zero={self.zero}: must be 0, 1, 2 or 3")
        for mesh in (ATTENTION, EXPERTS):
            named = [name for name in mesh if "data" not in name]
            sizes = [getattr(self, name) for name in named]
            if self.gpus % prod(sizes):
                said = " x ".join(f"{name} {size}" for name, size in zip(named, sizes, strict=True))
                raise InputError(f"parallel: {said} = {prod(sizes)} does not divide {self.gpus} GPUs{self._nearest(named)}")

    @property
    def data(self) -> int:
        """GPUs that hold the same part of attention."""
        return self.gpus // (self.tensor * self.context * self.pipeline)

    @property
    def expert_data(self) -> int:
        """GPUs that hold the same experts."""
        return self.gpus // (self.expert_tensor * self.expert * self.pipeline)

    @property
    def stage_gpus(self) -> int:
        """GPUs of one pipeline stage."""
        return self.gpus // self.pipeline

    def groups(self, name: str) -> Ints:
        """The ranks of every group of a kind, int [groups, size]; `name` is one of `ATTENTION` or `EXPERTS`."""
        mesh = ATTENTION if name in ATTENTION else EXPERTS
        ranks = np.arange(self.gpus).reshape([getattr(self, axis) for axis in reversed(mesh)])
        axis = len(mesh) - 1 - mesh.index(name)
        return np.moveaxis(ranks, axis, -1).reshape(-1, getattr(self, name))

    def _nearest(self, named: list[str]) -> str:
        """What to write instead: of the sizes above 1 the one whose nearest fitting value is least far away."""
        best: tuple[float, str] | None = None
        for name in named:
            size = getattr(self, name)
            rest = prod(getattr(self, other) for other in named if other != name)
            for other in range(1, self.gpus // rest + 1 if self.gpus % rest == 0 else 0):
                if (self.gpus // rest) % other == 0 and size > 1:
                    far = max(other / size, size / other)
                    if best is None or far < best[0]:
                        best = far, f"parallel.{name}={other}"
        return f"; nearest that does: {best[1]}" if best else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """GPUs that share attention and dense FFNs in a forward pass, `tensor` neighbours each; a batch is the group's."""

    tensor: int = 1
    scattered: bool = False     # between parts each has its share of the tokens (sequence parallel); else all have all
    inside: bool = False        # the group shares the matrices of every expert, too: nothing is exchanged

    def of(self, gpus: int) -> Parallel:
        """The sizes of all groups of a forward pass on so many GPUs.

        Raises:
            InputError: groups that the GPUs cannot form.
        """
        if gpus % self.tensor:
            near = min((d for d in range(1, gpus + 1) if gpus % d == 0), key=lambda d: max(d / self.tensor, self.tensor / d))
            raise InputError(f"parallel.tensor={self.tensor}: does not divide {gpus} GPUs; nearest that does: {near}")
        spread, cut = (1, self.tensor) if self.inside else (gpus, 1)
        return Parallel(
            gpus=gpus, tensor=self.tensor, sequence_parallel=self.scattered or self.tensor == 1, expert=spread, expert_tensor=cut
        )


def group_from(config: Mapping[str, Any], *, experts: bool) -> Group:
    """What the config group `parallel` says of a forward pass: tensor groups; all else is split in training alone.

    Args:
        experts: the model has routed experts. They are spread over all GPUs, or with `expert_tensor` inside of every group.

    Raises:
        InputError: another split than these.
    """
    for key in ("context", "pipeline", "virtual"):
        if config.get(key) != 1:
            raise InputError(
                f"parallel.{key}={_written(config.get(key))}: splits training steps; in a forward pass GPUs share attention and "
                "dense FFNs (parallel.tensor) and spread or share experts; use 1"
            )
    tensor, shared, spread, scattered = (config.get(key) for key in ("tensor", "expert_tensor", "expert", "sequence_parallel"))
    for key, value in (("tensor", tensor), ("expert_tensor", shared)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"parallel.{key}={_written(value)}: must be a whole number from 1 up")
    assert isinstance(tensor, int)
    assert isinstance(shared, int)
    if shared not in (1, tensor):
        raise InputError(
            f"parallel.expert_tensor={shared}: in a forward pass the GPUs that share attention share all experts, too "
            f"(expert_tensor = tensor = {tensor}), or experts are spread over all GPUs (1)"
        )
    if spread is not None and not (spread == 1 and shared > 1):
        raise InputError(
            f"parallel.expert={_written(spread)}: a forward pass spreads experts over all GPUs (null), or every group of "
            "parallel.expert_tensor GPUs has all (1)"
        )
    if config.get("tensor_overlap", False) is not False:
        raise InputError(f"parallel.tensor_overlap={_written(config['tensor_overlap'])}: only training steps know it; use false")
    if scattered is not None and not isinstance(scattered, bool):
        raise InputError(f"parallel.sequence_parallel={_written(scattered)}: must be true, false or null")
    inside = experts and shared > 1
    if scattered is None:
        scattered = experts and not inside
    return Group(tensor=tensor, scattered=scattered and tensor > 1, inside=inside)


def parallel_from(config: Mapping[str, Any], gpus: int, n_experts: int | None = None) -> Parallel:
    """The sizes of the config group `parallel`; `expert: null` spreads experts over all GPUs of a stage.

    Args:
        n_experts: of a layer, where there are any: `null` is then the most GPUs among which they can be dealt evenly.

    Raises:
        InputError: an unknown key (with the nearest known one), sizes that do not divide the GPUs.
    """
    known = [field.name for field in fields(Parallel) if field.name != "gpus"]
    for key in config:
        if key not in (*known, *OTHERS):
            raise InputError(f"parallel.{key}: there is no such key{did_you_mean(str(key), known)} (known: {', '.join(known)})")
    given = {key: value for key, value in config.items() if key not in OTHERS and not (key in DERIVED and value is None)}
    if "virtual" not in given and config.get("order") in ("interleaved", "combined"):
        given["virtual"] = 2
    if "expert" not in given:
        alone = Parallel(gpus=gpus, **given)
        given["expert"] = alone.stage_gpus // alone.expert_tensor
        if n_experts:
            given["expert"] = gcd(given["expert"], n_experts)
    return Parallel(gpus=gpus, **given)


def _written(value: Any) -> str:
    """As in an override."""
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)
