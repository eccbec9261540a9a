"""Finds the routers of a PyTorch model and reads what they chose out of what they return. Chooses nothing by itself.

Routers return their choice in a few forms: int indices beside logits and weights (transformers 5: Mixtral, Qwen, DeepSeek, OLMoE,
GPT-OSS, GLM, MiniMax, Granite, Jamba, PhiMoE, ...), a one-hot mask (Switch), or scores that are 0 where an expert was not chosen
(Llama 4). The form is told by the tensors' types and shapes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from clustersim.types import InputError

NAMED = re.compile(r".*(Router|Gate|Gating|TopK[A-Za-z]*)$")
NO_ROUTER = re.compile(r".*(Rotary|Attention|SharedExpert|MLP|Norm).*")


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """A router in a model."""

    name: str                   # of the module
    module: nn.Module
    stack: str                  # what stands before the layer's number in the name: encoder and decoder are two
    layer: int


@dataclass(frozen=True, slots=True, eq=False)
class Chosen:
    """What a router returned, tokens flattened."""

    ids: Tensor                 # int64 [tokens, k]; -1 no expert
    weights: Tensor | None      # [tokens, k]
    logits: Tensor | None       # [tokens, experts]
    n_experts: int


def find_routers(model: nn.Module) -> list[Site]:
    """The routers of a model in order of stack and layer, told by the names of their classes.

    Raises:
        InputError: there is none.
    """
    sites: list[Site] = []
    for name, module in model.named_modules():
        kind = type(module).__name__
        if not NAMED.fullmatch(kind) or NO_ROUTER.fullmatch(kind) or not any(True for _ in module.parameters()):
            continue
        if any(name.startswith(f"{site.name}.") for site in sites):
            continue                        # inside another one
        number = re.search(r"(\d+)(?!.*\d)", name)
        if number is not None:
            sites.append(Site(name, module, name[: number.start()], int(number[1])))
    if not sites:
        raise InputError(
            f"{type(model).__name__}: no router found; a router's class is named ...Router, ...Gate or ...Gating and stands in a "
            "numbered layer (or give routers=[names])"
        )
    stacks = list(dict.fromkeys(site.stack for site in sites))
    return sorted(sites, key=lambda site: (stacks.index(site.stack), site.layer))


def named_routers(model: nn.Module, names: list[str]) -> list[Site]:
    """The modules of these names, in this order.

    Raises:
        InputError: no such module.
    """
    modules = dict(model.named_modules())
    for name in names:
        if name not in modules:
            raise InputError(f"routers={name}: {type(model).__name__} has no such module")
    return [Site(name, modules[name], "", layer) for layer, name in enumerate(names)]


def read_choice(site: Site, output: Any) -> Chosen:
    """The choice in what a router returned.

    Raises:
        InputError: its output has none of the known forms.
    """
    tensors = [value for value in (output if isinstance(output, tuple | list) else (output,)) if isinstance(value, Tensor)]
    flat = [value.detach().flatten(0, -2) if value.dim() > 1 else value.detach()[:, None] for value in tensors]
    floats = [value for value in flat if value.is_floating_point()]
    whole = [value for value in flat if not value.is_floating_point()]
    experts = _experts(site.module)
    if whole:
        ids = whole[0]
        wide = [one for one in floats if one.shape[-1] == experts or (experts is None and one.shape[-1] > ids.shape[-1])]
        logits = wide[0] if wide else None
        experts = experts or (logits.shape[-1] if logits is not None else int(ids.max()) + 1)
        if ids.shape[-1] == experts and _is_mask(ids):
            return _from_mask(ids.bool(), floats, logits, experts)
        weights = next((one for one in floats if one.shape == ids.shape and one is not logits), None)
        return Chosen(ids.long(), weights, logits, experts)
    if len(floats) == 2 and floats[0].shape == floats[1].shape and (floats[0] == 0).any():
        return _from_mask(floats[0] != 0, [floats[0]], floats[1], floats[0].shape[-1])         # scores, logits
    shapes = ", ".join(str(list(one.shape)) for one in tensors) or "no tensor"
    kind = type(site.module).__name__
    raise InputError(f"{site.name}: a {kind} returns {shapes}; no indices, mask or scores of a choice in it")


def _is_mask(ids: Tensor) -> bool:
    return bool(((ids == 0) | (ids == 1)).all()) and (ids.shape[-1] > 2 or bool((ids.sum(-1) <= 1).all()))


def _from_mask(mask: Tensor, floats: list[Tensor], logits: Tensor | None, experts: int) -> Chosen:
    """As many slots as the token with the most experts has; -1 in those that others leave empty."""
    k = max(int(mask.sum(-1).max()), 1)
    taken, ids = mask.float().topk(k, dim=-1, sorted=True)
    ids = torch.where(taken > 0, ids, -1)
    weights = None
    for one in floats:
        if one.shape == mask.shape and one is not logits:
            weights = one.gather(1, ids.clamp(min=0)) * (ids >= 0)
        elif one.shape[-1] == 1 and k == 1:
            weights = one * (ids >= 0)
    return Chosen(ids, weights, logits, experts)


def _experts(module: nn.Module) -> int | None:
    for name in ("num_experts", "n_routed_experts", "num_local_experts", "n_experts"):
        if isinstance(value := getattr(module, name, None), int):
            return value
    weight = getattr(module, "weight", None)
    return int(weight.shape[0]) if isinstance(weight, Tensor) and weight.dim() == 2 else None


def without(output: Any, site: Site, keep: Tensor) -> Any:
    """What a router returned with the weights of choices that are not kept set to 0, so that their experts add nothing.

    Args:
        keep: bool [tokens, k], in the order of `read_choice`.

    Raises:
        InputError: the router returns no weight for each choice.
    """
    chosen = read_choice(site, output)
    if chosen.weights is None:
        raise InputError(f"{site.name}: returns no weights, so nothing can be dropped in it")
    values = list(output)
    for i, value in enumerate(values):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            continue
        if value.numel() == chosen.ids.numel() and value.shape[-1] == chosen.ids.shape[-1]:
            values[i] = value * keep.view(value.shape).to(value.dtype)
            return type(output)(values)
    scores = values[0]                          # Llama 4: zeros where an expert was not chosen
    mask = torch.zeros(scores.flatten(0, -2).shape, dtype=torch.bool, device=scores.device)
    mask.scatter_(1, chosen.ids.clamp(min=0), keep & (chosen.ids >= 0))
    values[0] = scores * mask.view(scores.shape).to(scores.dtype)
    return type(output)(values)
