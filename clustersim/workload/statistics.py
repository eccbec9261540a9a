"""What a trace looks like in a few numbers: skew, locality in a sequence, affinity between layers. Pure NumPy, no files."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from clustersim.types import Floats, Ints, Trace


def load_cv(expert_ids: NDArray[np.integer], n_experts: int) -> Floats:
    """Standard deviation over mean of the experts' loads, float [layers]; 0 is perfectly balanced, sqrt(E - 1) one expert.

    Args:
        expert_ids: int [tokens, layers, top_k]; -1 no expert.
        n_experts: experts per layer.
    """
    load = expert_loads(expert_ids, n_experts)
    return np.asarray(load.std(1) / load.mean(1), np.float64)


def expert_loads(expert_ids: NDArray[np.integer], n_experts: int) -> Ints:
    """Choices of every expert, int [layers, experts], of ids [tokens, layers, top_k]; -1 no expert."""
    found = np.zeros((expert_ids.shape[1], n_experts + 1), np.int64)            # the first column takes the -1
    for layer, row in enumerate(found):
        row += np.bincount(expert_ids[:, layer].ravel().astype(np.int64) + 1, minlength=n_experts + 1)
    return found[:, 1:]


def normalised_entropy(load: NDArray[Any]) -> Floats:
    """Entropy of the last axis's shares over that of equal shares: 1 even, 0 all on one. Float, one axis less than `load`."""
    p = load / load.sum(-1, keepdims=True)
    bits = -(p * np.log(np.where(p > 0, p, 1.0))).sum(-1)
    return np.asarray(bits / np.log(load.shape[-1]), np.float64)


def gini(load: NDArray[Any]) -> Floats:
    """Mean absolute difference of two loads of the last axis over twice their mean: 0 even, 1 - 1/E all on one."""
    n = load.shape[-1]
    rank = 2 * np.arange(1, n + 1) - n - 1
    return np.asarray((np.sort(load, -1) * rank).sum(-1) / (n * load.sum(-1)), np.float64)


def overlap(trace: Trace, lag: int) -> Floats:
    """Fraction of a token's experts that the token `lag` positions before it in its sequence used too, float [layers].

    NaN when no two tokens of a sequence are that far apart.
    """
    order = np.lexsort((trace.pos, trace.seq))
    seq, pos = trace.seq[order], trace.pos[order]
    pairs = (seq[lag:] == seq[:-lag]) & (pos[lag:] - pos[:-lag] == lag)
    slots = np.ascontiguousarray(trace.expert_ids.transpose(2, 1, 0))       # [top_k, layers, tokens]
    now, before = slots[:, :, order[lag:][pairs]], slots[:, :, order[:-lag][pairs]]
    shared = np.zeros(trace.n_layers, np.int64)
    for mine in now:
        for other in before:
            shared += ((mine == other) & (mine >= 0)).sum(1)
    asked = (now >= 0).sum((0, 2))
    return np.asarray(np.divide(shared, asked, out=np.full(trace.n_layers, np.nan), where=asked > 0), np.float64)


def chance_overlap(trace: Trace) -> Floats:
    """The overlap that independent tokens of the same expert popularity would have: sum_e p_e^2 / sum_e p_e, float [layers],
    with p_e the fraction of tokens that use expert e."""
    popularity = expert_loads(trace.expert_ids, trace.n_experts) / trace.n_tokens
    return np.asarray((popularity**2).sum(1) / popularity.sum(1), np.float64)


def next_layer_recall(trace: Trace, *, ahead: int = 1, seed: int = 0, held_out: float = 0.3) -> tuple[Floats, Floats]:
    """How much of a layer's choice the one before gives away: recall from its experts, from popularity alone; both [layers - 1].

    The later layer's experts are ranked by log p(e') + sum over the chosen e of log(p(e'|e) / p(e')) and the best top_k are
    compared with what was chosen. Learned on part of the sequences, tested on the rest; p(e'|e) from the tokens that chose e
    and one more that goes by p(e'), so that what was never seen says nothing.

    Args:
        ahead: layers between the two; the result is then [layers - ahead].
        seed: of the split by sequence.
        held_out: share of the sequences that is tested on.
    """
    sequences = np.unique(trace.seq)
    tested = np.random.default_rng(seed).permutation(sequences)[: max(1, round(held_out * sequences.size))]
    test = np.isin(trace.seq, tested)
    learn, tell = trace.expert_ids[~test], trace.expert_ids[test]
    found = np.zeros((2, max(trace.n_layers - ahead, 0)))
    for layer in range(trace.n_layers - ahead):
        here, after = (_used(learn[:, at], trace.n_experts) for at in (layer, layer + ahead))
        popularity = (after.sum(0, dtype=np.float64) + 1) / (len(after) + 2)
        given = (here.T @ after + popularity) / (here.sum(0, dtype=np.float64)[:, None] + 1)
        lift = np.log(given / popularity)
        truth = _used(tell[:, layer + ahead], trace.n_experts)
        scores = np.log(popularity) + _used(tell[:, layer], trace.n_experts) @ lift
        best = np.argpartition(-scores, trace.top_k - 1, axis=1)[:, : trace.top_k]
        popular = np.argpartition(-popularity, trace.top_k - 1)[: trace.top_k]
        found[0, layer] = np.take_along_axis(truth, best, axis=1).sum() / truth.sum()
        found[1, layer] = truth[:, popular].sum() / truth.sum()
    return found[0], found[1]


def pair_lift(expert_ids: NDArray[np.integer], n_experts: int) -> tuple[Floats, Floats]:
    """How much more often than by chance two experts serve the same token, and the chance: both [layers, experts, experts].

    (observed / expected, expected) pairs, expected tokens x p_e x p_f with p_e the fraction of tokens that use expert e; lift 0
    where nothing is expected. The diagonal means nothing.
    """
    tokens, layers, _ = expert_ids.shape
    seen, expected = np.zeros((layers, n_experts, n_experts)), np.zeros((layers, n_experts, n_experts))
    for layer in range(layers):
        one = _used(expert_ids[:, layer], n_experts)
        seen[layer] = one.T @ one
        load = np.diagonal(seen[layer])
        expected[layer] = np.outer(load, load) / tokens
    return np.divide(seen, expected, out=np.zeros_like(seen), where=expected > 0), expected


def lift_p99(lift: Floats, *expected: Floats, least: float = 50) -> Floats:
    """99th percentile of the lift of pairs expected `least` times in each of `expected`, float [layers]; NaN without any."""
    upper = np.triu(np.ones(lift.shape[1:], bool), 1)
    found = np.full(len(lift), np.nan)
    for layer in range(len(lift)):
        often = upper & np.all([one[layer] >= least for one in expected], axis=0)
        if often.any():
            found[layer] = np.quantile(lift[layer][often], 0.99)
    return found


def sequence_spread(trace: Trace) -> Floats:
    """How far sequences are from the whole: share of a sequence's choices that would have to go to other experts to give the
    whole trace's load (total variation distance), mean over the sequences weighted by their tokens, float [layers].

    What a sequence's finite length does is part of it: compare sequences of the same lengths.
    """
    _, which = np.unique(trace.seq, return_inverse=True)
    n = int(which.max()) + 1
    moved, tokens = np.zeros(trace.n_layers), np.bincount(which, minlength=n)
    for layer in range(trace.n_layers):
        ids = trace.expert_ids[:, layer].astype(np.int64)
        at = which[:, None] * (trace.n_experts + 1) + np.where(ids < 0, trace.n_experts, ids)
        load = np.bincount(at.ravel(), minlength=n * (trace.n_experts + 1)).reshape(n, -1)[:, : trace.n_experts]
        whole = load.sum(0) / max(load.sum(), 1)
        each = load / np.maximum(load.sum(1, keepdims=True), 1)
        moved[layer] = (tokens * 0.5 * np.abs(each - whole).sum(1)).sum() / tokens.sum()
    return moved


def distinct_experts(trace: Trace, tokens: int, *, batches: int = 64, seed: int = 0) -> tuple[Floats, Floats]:
    """How many experts a batch of `tokens` tokens touches in each layer, mean over batches: of tokens drawn from the whole
    trace, and of neighbours in one sequence; both float [layers]. NaN where there is no such batch.

    A batch's experts are the weights that a decode step must read. Sequences that are shorter count for nothing.
    """
    rng = np.random.default_rng(seed)
    mixed, together = np.full(trace.n_layers, np.nan), np.full(trace.n_layers, np.nan)
    if tokens <= trace.n_tokens:
        mixed = _touched(trace, [rng.choice(trace.n_tokens, tokens, replace=False) for _ in range(batches)])
    order = np.lexsort((trace.pos, trace.seq))
    first = np.flatnonzero(np.r_[True, np.diff(trace.seq[order]) != 0])
    length = np.diff(np.r_[first, trace.n_tokens])
    if (whole := np.flatnonzero(length >= tokens)).size:
        of = rng.choice(whole, batches, p=(length[whole] / length[whole].sum()))
        begin = first[of] + (rng.random(batches) * (length[of] - tokens + 1)).astype(np.int64)
        together = _touched(trace, [order[one : one + tokens] for one in begin])
    return mixed, together


def _touched(trace: Trace, batches: list[Ints]) -> Floats:
    found = np.zeros(trace.n_layers)
    for rows in batches:
        found += (expert_loads(trace.expert_ids[rows], trace.n_experts) > 0).sum(1)
    return found / len(batches)


def rows_of(trace: Trace, domain: str) -> Ints:
    """Rows of the tokens whose sequence belongs to `domain`."""
    named = [seq for seq, name in trace.domain.items() if name == domain]
    return np.flatnonzero(np.isin(trace.seq, named))


def membership(expert_ids: NDArray[np.integer], n_experts: int) -> NDArray[np.bool_]:
    """Whether a token uses an expert, bool [tokens, layers, experts]."""
    used = np.zeros((*expert_ids.shape[:2], n_experts + 1), bool)       # the last column takes the -1
    np.put_along_axis(used, expert_ids.astype(np.int64) % (n_experts + 1), True, axis=2)
    return used[:, :, :n_experts]


def _used(expert_ids: NDArray[np.integer], n_experts: int) -> NDArray[np.float32]:
    """Whether a token uses an expert in one layer, as 0 or 1, float32 [tokens, experts]; sums stay exact up to 2^24 tokens."""
    used = np.zeros((len(expert_ids), n_experts + 1), np.float32)
    for slot in expert_ids.T:
        used[np.arange(len(used)), slot] = 1            # -1 goes to the last column
    return used[:, :n_experts]
