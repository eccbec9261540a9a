"""What a trace looks like in a few numbers: skew, locality in a sequence, affinity between layers. Pure NumPy, no files."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from clustersim.types import Floats, Ints, Trace


def load_cv(expert_ids: NDArray[np.integer], n_experts: int) -> Floats:
    """Standard deviation over mean of the experts' loads, float [layers]; 0 is perfectly balanced, sqrt(E - 1) one expert.

    Args:
        expert_ids: int [tokens, layers, top_k]; -1 no expert.
        n_experts: experts per layer.
    """
    load = membership(expert_ids, n_experts).sum(0, dtype=np.int64)
    return np.asarray(load.std(1) / load.mean(1), np.float64)


def overlap(trace: Trace, lag: int) -> float:
    """Fraction of a token's experts that the token `lag` positions before it in its sequence used too, mean over layers.

    NaN when no two tokens of a sequence are that far apart.
    """
    chosen = membership(trace.expert_ids, trace.n_experts)
    order = np.lexsort((trace.pos, trace.seq))
    seq, pos = trace.seq[order], trace.pos[order]
    pairs = (seq[lag:] == seq[:-lag]) & (pos[lag:] - pos[:-lag] == lag)
    now, before = order[lag:][pairs], order[:-lag][pairs]
    shared, asked = (chosen[now] & chosen[before]).sum(), chosen[now].sum()
    return float(shared / asked) if asked else float("nan")


def chance_overlap(trace: Trace) -> float:
    """The overlap that independent tokens of the same expert popularity would have: mean over layers of sum_e p_e^2 / sum_e p_e,
    with p_e the fraction of tokens that use expert e."""
    popularity = membership(trace.expert_ids, trace.n_experts).mean(0)
    return float((popularity**2).sum() / popularity.sum())


def next_layer_recall(trace: Trace, *, seed: int = 0, held_out: float = 0.3) -> tuple[float, float]:
    """How much of a layer's choice the layer before gives away: (recall from its experts, recall from popularity alone).

    The next layer's experts are ranked by log p(e') + sum over the chosen e of log(p(e'|e) / p(e')), counts smoothed by one,
    and the best top_k are compared with what was chosen. Learned on part of the sequences, tested on the rest; mean over
    pairs of adjacent layers.

    Args:
        seed: of the split by sequence.
        held_out: share of the sequences that is tested on.
    """
    chosen = membership(trace.expert_ids, trace.n_experts)
    sequences = np.unique(trace.seq)
    tested = np.random.default_rng(seed).permutation(sequences)[: max(1, round(held_out * sequences.size))]
    test = np.isin(trace.seq, tested)
    learn = chosen[~test].astype(np.float64)
    found = np.zeros(2)
    for layer in range(trace.n_layers - 1):
        here, after = learn[:, layer], learn[:, layer + 1]
        popularity = (after.sum(0) + 1) / (len(after) + 2)
        given = (here.T @ after + 1) / (here.sum(0)[:, None] + 2)
        lift = np.log(given / popularity)
        truth = chosen[test, layer + 1]
        scores = np.log(popularity) + chosen[test, layer] @ lift
        for i, ranked in enumerate((scores, np.broadcast_to(popularity, scores.shape))):
            best = np.argpartition(-ranked, trace.top_k - 1, axis=1)[:, : trace.top_k]
            found[i] += np.take_along_axis(truth, best, axis=1).sum() / truth.sum()
    with_layer, popular = found / (trace.n_layers - 1)
    return float(with_layer), float(popular)


def rows_of(trace: Trace, domain: str) -> Ints:
    """Rows of the tokens whose sequence belongs to `domain`."""
    named = [seq for seq, name in trace.domain.items() if name == domain]
    return np.flatnonzero(np.isin(trace.seq, named))


def membership(expert_ids: NDArray[np.integer], n_experts: int) -> NDArray[np.bool_]:
    """Whether a token uses an expert, bool [tokens, layers, experts]."""
    used = np.zeros((*expert_ids.shape[:2], n_experts + 1), bool)       # the last column takes the -1
    np.put_along_axis(used, expert_ids.astype(np.int64) % (n_experts + 1), True, axis=2)
    return used[:, :, :n_experts]
