"""TensorRT-LLM's published imbalance of DeepSeek-R1, before and after redundant experts, as far as statistics explain it.

Published (TensorRT-LLM tech blog 4, "Scaling Expert Parallelism in TensorRT-LLM", DeepSeek-R1 decoding on 32 GB200, 1,024 choices
per GPU and step): (max - mean) / mean of the GPUs' tokens 1.564 without EPLB, 0.109 with 288 slots. The router's trace is not
published, so the skew is taken from the first number, and what 288 slots make of it is compared with the second.
"""

import numpy as np

from clustersim.placement.deepseek import rebalance

LAYERS, EXPERTS, TOP_K, GPUS, SLOTS, TOKENS = 58, 256, 8, 32, 288, 32 * 128
UNEVEN, PUBLISHED = 1.56, 0.109
FAMILIES = ("lognormal", "dirichlet")
GPU_OF = np.arange(SLOTS) // (SLOTS // GPUS)


def excess(load):
    """(max - mean) / mean of the last axis."""
    return load.max(axis=-1) / load.mean(axis=-1) - 1


def inclusion(weight):
    """Probabilities with which a token chooses each expert: proportional to the weights, 1 at most, TOP_K in sum."""
    p = TOP_K * weight / weight.sum()
    while (p > 1).any():
        certain = p >= 1
        p = np.where(certain, 1.0, (TOP_K - certain.sum()) * weight / weight[~certain].sum())
    return p


def expected_loads(family):
    """Inclusion probabilities [layers, experts] of a family, its one parameter solved for UNEVEN with 8 neighbours on a GPU."""
    rng = np.random.default_rng(0)
    normal, low, high = rng.normal(size=(LAYERS, EXPERTS)), 1e-2, 1e2

    def draw(spread):
        if family == "lognormal":
            return np.exp(spread * normal)
        return np.array([np.random.default_rng([1, layer]).gamma(1 / spread, size=EXPERTS) for layer in range(LAYERS)])

    for _ in range(40):
        middle = float(np.sqrt(low * high))
        p = np.array([inclusion(weight) for weight in draw(middle)])
        uneven = excess(p.reshape(LAYERS, GPUS, -1).sum(axis=2)).mean()
        low, high = (middle, high) if uneven < UNEVEN else (low, middle)
    return p


def batch(rng, p):
    """How many of TOKENS independent tokens choose each expert; each takes TOP_K, expert e with probability p[e] exactly.

    Systematic sampling in random order (Madow 1949): with experts laid end to end in random order, those that the points
    u, u + 1, ... fall on.
    """
    order = np.argsort(rng.random((TOKENS, p.size)), axis=1)
    ends = np.cumsum(p[order], axis=1)
    points = rng.random((TOKENS, 1))
    passed = np.floor(np.concatenate((np.zeros((TOKENS, 1)), ends), axis=1) - points + 1e-12)
    hits = np.diff(passed, axis=1)
    return np.bincount(order.ravel(), hits.ravel(), p.size)


def drifted(rng, p, drift):
    """Loads whose difference from p is `drift` of it: the root of sum (p' - p)^2 over sum p^2; changes are lognormal."""
    normal, low, high = rng.normal(size=p.size), 0.0, 5.0
    for _ in range(40):
        middle = (low + high) / 2
        later = inclusion(p * np.exp(middle * normal))
        change = np.sqrt(((later - p) ** 2).sum() / (p**2).sum())
        low, high = (middle, high) if change < drift else (low, middle)
    return later


def left_over(p, every=1, drift=0.0, sampled=True):
    """(max - mean) / mean after EPLB decided on the load p, replicas sharing equally; one number per layer, of every `every`-th.

    Args:
        drift: of the load that is served from the one decided on, see `drifted`.
        sampled: independent batches; else the load itself.
    """
    rng = np.random.default_rng(2)
    expert_of, _, count = rebalance(p, n_slots=SLOTS, n_groups=1, n_nodes=1, n_gpus=GPUS)
    left = []
    for layer in range(0, len(p), every):
        served = drifted(rng, p[layer], drift) if drift else p[layer]
        load = batch(rng, served) if sampled else served
        left.append(excess(np.bincount(GPU_OF, (load / count[layer])[expert_of[layer]])))
    return np.array(left)


def drift_of(trace):
    """How much expert loads change within a sequence: between its first and second half, and between decode steps 64-127 and
    192-255 of those that last so long; as `drifted` counts it, layers together.

    Sampling noise cancels: the changes of one half of the sequences are multiplied with those of the other half.
    """
    order = np.lexsort((trace.pos, trace.seq))
    ids, seq = trace.expert_ids[order], trace.seq[order]
    _, which, length = np.unique(seq, return_inverse=True, return_counts=True)
    at, n_experts = np.arange(seq.size) - (np.cumsum(length) - length)[which], int(ids.max()) + 1
    long = length[which] >= 256
    windows = {
        "halves of a sequence": (2 * at < length[which], 2 * at >= length[which]),
        "steps 64-127 and 192-255": (long & (at // 64 == 1), long & (at // 64 == 3)),
        "steps 128-191 and 192-255": (long & (at // 64 == 2), long & (at // 64 == 3)),
    }
    found = {}
    for name, (early, late) in windows.items():
        if not (early.any() and late.any()):
            continue
        share = np.array([
            [
                [np.bincount(ids[own, layer].ravel(), minlength=n_experts) / own.sum() for own in (early & half, late & half)]
                for half in (which % 2 == 0, which % 2 == 1)
            ]
            for layer in range(ids.shape[1])
        ])  # [layers, halves of the sequences, early and late, experts]
        change = share[:, :, 1] - share[:, :, 0]
        squares = (share[:, :, 0].mean(axis=1) ** 2).sum()
        found[name] = float(np.sqrt(max(0.0, (change[:, 0] * change[:, 1]).sum() / squares)))
    return found
