"""The loops that count copies, token by token. Inner loops only: import this module late, it imports numba."""

from __future__ import annotations

import numpy as np

from clustersim.jit import lean

KNUTH = np.uint64(2654435769)       # as placement.replicas.token_hash


@lean
def count_choices(ids, source, counts):
    """counts[source, id + 1] += 1 for every choice [tokens, k]; column 0 takes those without an expert. False: one is unknown."""
    for t in range(ids.shape[0]):
        row = counts[source[t]]
        for j in range(ids.shape[1]):
            at = ids[t, j] + 1
            if at >= row.size:
                return False
            row[at] += 1
    return True


@lean
def count_places(ids, source, index, table, counts):
    """As `count_choices`, with the place of a choice in table[replica, id + 1], the replica by a hash of the index."""
    replicas = np.uint64(table.shape[0])
    for t in range(ids.shape[0]):
        row, places = counts[source[t]], table[((np.uint64(index[t]) * KNUTH) & np.uint64(0xFFFFFFFF)) % replicas]
        for j in range(ids.shape[1]):
            at = ids[t, j] + 1
            if at >= places.size:
                return False
            row[places[at] + 1] += 1
    return True


@lean
def count_distinct(ids, source, index, table, node_of, seen_gpu, seen_node, to_gpu, to_node):
    """Once per token: to_gpu[source, GPU] and to_node[source, node]. `seen_*` hold the last token that was counted there."""
    replicas = np.uint64(table.shape[0])
    for t in range(ids.shape[0]):
        s = source[t]
        places = table[((np.uint64(index[t]) * KNUTH) & np.uint64(0xFFFFFFFF)) % replicas]
        for j in range(ids.shape[1]):
            at = ids[t, j] + 1
            if at >= places.size:
                return False
            gpu = places[at]
            if gpu >= 0 and seen_gpu[gpu] != t:
                seen_gpu[gpu] = t
                to_gpu[s, gpu] += 1
                node = node_of[gpu]
                if seen_node[node] != t:
                    seen_node[node] = t
                    to_node[s, node] += 1
    return True
