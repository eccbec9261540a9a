"""A small mixture-of-experts language model in PyTorch, as plain functions over a dict of tensors. Trains and routes.

The only place that needs torch at import. Knows nothing of files or text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Parameters = dict[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A decoder whose every block is causal attention and then a mixture of experts; token embeddings tied to the output."""

    vocabulary: int
    length: int                 # most tokens in a sequence: positions are learned
    n_layers: int = 6
    n_experts: int = 32         # per layer
    top_k: int = 4
    hidden: int = 128
    heads: int = 4
    ffn: int = 64               # inside one expert


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Routed:
    """What the router did with one token in one layer, tokens flattened from [sequences, length]."""

    logits: Tensor              # [tokens, experts]
    experts: Tensor             # [tokens, top_k], by descending logit
    weights: Tensor             # [tokens, top_k], softmax over the chosen logits; each row sums to 1


def initial_parameters(shape: Shape, device: torch.device, seed: int) -> Parameters:
    """Normal weights with deviation fan_in^-1/2, smaller at the ends of residual branches; drawn on the CPU, so that
    a seed means the same model on every device."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*size: int, deviation: float) -> Tensor:
        return torch.randn(*size, generator=draw) * deviation

    d, f, e = shape.hidden, shape.ffn, shape.n_experts
    branch = 1 / math.sqrt(2 * shape.n_layers)              # keeps the residual stream's variance from growing with depth
    parameters = {
        "embed": normal(shape.vocabulary, d, deviation=0.02), "position": normal(shape.length, d, deviation=0.02),
        "norm": torch.ones(d),
    }
    for i in range(shape.n_layers):
        parameters |= {
            f"{i}.norm_a": torch.ones(d), f"{i}.norm_m": torch.ones(d),
            f"{i}.qkv": normal(d, 3 * d, deviation=d**-0.5), f"{i}.out": normal(d, d, deviation=d**-0.5 * branch),
            f"{i}.router": normal(d, e, deviation=0.02),
            f"{i}.up": normal(e, d, f, deviation=d**-0.5), f"{i}.down": normal(e, f, d, deviation=f**-0.5 * branch),
        }
    return {name: value.to(device).requires_grad_() for name, value in parameters.items()}


def forward(
    p: Mapping[str, Tensor], shape: Shape, tokens: Tensor, limit: Callable[[int, Routed], Routed] = lambda layer, routed: routed
) -> tuple[Tensor, list[Routed]]:
    """(logits of the next token [sequences, length, vocabulary], what each layer's router did) for tokens [sequences, length].

    `limit(layer, routed)` may take weight away from choices before the experts compute.
    """
    x = p["embed"][tokens] + p["position"][: tokens.shape[1]]
    routed = []
    for i in range(shape.n_layers):
        x = x + _attention(p, i, shape, _normed(x, p[f"{i}.norm_a"]))
        flat = _normed(x, p[f"{i}.norm_m"]).flatten(0, 1)
        chosen = _route(p[f"{i}.router"], shape, flat)
        x = x + _experts(p[f"{i}.up"], p[f"{i}.down"], flat, limit(i, chosen)).view_as(x)
        routed.append(chosen)
    return _normed(x, p["norm"]) @ p["embed"].T, routed


def balance_loss(routed: list[Routed], n_experts: int) -> Tensor:
    """Sum over layers of E * sum_e f_e P_e: 1 per layer when balanced, E when one expert takes all.

    f_e is the fraction of choices that fell on expert e, P_e the mean router probability (Fedus et al. 2021, eq. 4).
    """
    losses = []
    for layer in routed:
        chosen = torch.bincount(layer.experts.flatten(), minlength=n_experts) / layer.experts.numel()
        losses.append(n_experts * (chosen * layer.logits.softmax(-1).mean(0)).sum())
    return torch.stack(losses).sum()


def train(
    p: Parameters, shape: Shape, batches: Callable[[int], NDArray[np.int64]], *, steps: int, balance: float,
    learning_rate: float = 2e-3, progress: Callable[[float, str], None] | None = None,
) -> list[float]:
    """Trains `p` in place with AdamW (one-cycle: linear warm-up over a tenth, cosine to a tenth); cross entropy in nats per step.

    Args:
        batches: step -> token ids [sequences, length + 1]; the last token is only a target.
        balance: weight of the load-balancing loss.
        progress: told (fraction done, message) after every step.
    """
    device = p["embed"].device
    matrices = [value for value in p.values() if value.dim() > 1]
    vectors = [value for value in p.values() if value.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95))
    losses = []
    for step in range(steps):
        warm, done = (step + 1) / max(1, steps // 10), step / steps
        rate = learning_rate * min(warm, 0.1 + 0.45 * (1 + math.cos(math.pi * done)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = torch.from_numpy(batches(step)).to(device)
        logits, routed = forward(p, shape, batch[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss + balance * balance_loss(routed, shape.n_experts))
        torch.nn.utils.clip_grad_norm_(list(p.values()), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if progress is not None:
            progress((step + 1) / steps, f"training step {step + 1} of {steps}, loss {losses[-1]:.2f} nats")
    return losses


def route(p: Mapping[str, Tensor], shape: Shape, tokens: NDArray[np.int64]) -> tuple[dict[str, NDArray[Any]], float]:
    """(experts, weights and logits as arrays [tokens, layers, ...], loss in nats per predicted token) for [sequences, length]."""
    with torch.no_grad():
        ids = torch.from_numpy(tokens).to(p["embed"].device)
        logits, routed = forward(p, shape, ids)
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        fields = {name: torch.stack([getattr(layer, name) for layer in routed], 1) for name in ("experts", "weights", "logits")}
    return {name: value.cpu().numpy() for name, value in fields.items()}, loss.item()


def _normed(x: Tensor, scale: Tensor) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * scale


def _attention(p: Mapping[str, Tensor], layer: int, shape: Shape, x: Tensor) -> Tensor:
    """Causal, written out: the fused backward passes are not deterministic on every GPU."""
    sequences, length, d = x.shape
    q, k, v = (x @ p[f"{layer}.qkv"]).view(sequences, length, 3, shape.heads, d // shape.heads).permute(2, 0, 3, 1, 4)
    later = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
    attended = (q @ k.mT * (d // shape.heads) ** -0.5).masked_fill(later, -math.inf).softmax(-1) @ v
    joined: Tensor = attended.transpose(1, 2).reshape(sequences, length, d) @ p[f"{layer}.out"]
    return joined


def _route(router: Tensor, shape: Shape, x: Tensor) -> Routed:
    logits = x @ router
    best, experts = logits.topk(shape.top_k, dim=-1)
    return Routed(logits=logits, experts=experts, weights=best.softmax(-1))


def _experts(up: Tensor, down: Tensor, x: Tensor, routed: Routed) -> Tensor:
    """Weighted sum of the chosen experts' outputs [tokens, hidden].

    Choices are sorted by expert, so that each expert is one dense product over its segment; a permutation has no
    repeated index, so its backward pass adds nothing twice and is the same in any order.
    """
    tokens, top_k = routed.experts.shape
    order = routed.experts.flatten().argsort(stable=True)
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=x.device)
    loads = torch.bincount(routed.experts.flatten(), minlength=len(up)).tolist()
    copies = x[:, None].expand(tokens, top_k, x.shape[1]).reshape(tokens * top_k, -1)[order]
    segments = [F.silu(part @ a) @ b for part, a, b in zip(torch.split(copies, loads), up.unbind(), down.unbind(), strict=True)]
    return (torch.cat(segments)[back].view(tokens, top_k, -1) * routed.weights[..., None]).sum(1)
