"""Compiled loops over expert ids as they lie in a file: checking and counting at the speed of memory. No files, no errors."""

from __future__ import annotations

from clustersim.jit import njit


@njit
def first_wrong_row(ids, n_experts, no_expert):
    """The first row of `ids` [rows, layers, top_k] with an id outside 0..n_experts - 1 that is not `no_expert`, or with an expert
    twice in a layer; -1 when there is none."""
    rows, layers, top_k = ids.shape
    for row in range(rows):
        for layer in range(layers):
            for slot in range(top_k):
                one = ids[row, layer, slot]
                if one == no_expert:
                    continue
                if one >= n_experts:
                    return row
                for other in range(slot):
                    if ids[row, layer, other] == one:
                        return row
    return -1
