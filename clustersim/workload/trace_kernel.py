"""Compiled loops over expert ids as they lie in a file: checking and counting at the speed of memory. No files, no errors."""

from __future__ import annotations

import numpy as np

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


@njit
def count_choices(ids, source, place_of, out):
    """Adds to `out` [layers, sources, places] the choices of each place, of `ids` [rows, layers, top_k] of tokens from `source`
    [rows]; `place_of` [experts], any other id is no expert. Quick where equal sources are neighbours: those stay in the cache."""
    rows, layers, top_k = ids.shape
    experts = np.uint64(place_of.size)
    near = np.zeros((layers, place_of.size + 1), np.uint32)
    for row in range(rows):
        for layer in range(layers):
            for slot in range(top_k):
                near[layer, min(np.uint64(ids[row, layer, slot]), experts)] += np.uint32(1)
        if row + 1 == rows or source[row + 1] != source[row]:
            own = source[row]
            for layer in range(layers):
                for expert in range(place_of.size):
                    out[layer, own, place_of[expert]] += near[layer, expert]
            near[:] = 0


@njit
def count_distinct(ids, source, place_of, node_of, own_node, places, nodes):
    """Adds to `places` [layers, sources, places] and `nodes` [layers, sources, nodes] the tokens that go to each: one with two
    experts on one place or node goes there once, and to no node of its own (`own_node` [sources]). `node_of` [experts]."""
    rows, layers, top_k = ids.shape
    experts, n_places, n_nodes = np.uint64(place_of.size), places.shape[2], nodes.shape[2]
    near_places, near_nodes = np.zeros((layers, n_places), np.uint32), np.zeros((layers, n_nodes), np.uint32)
    seen_place, seen_node = np.full(n_places, -1, np.int32), np.full(n_nodes, -1, np.int32)
    turn = np.int32(0)
    for row in range(rows):
        for layer in range(layers):
            turn += np.int32(1)
            for slot in range(top_k):
                one = np.uint64(ids[row, layer, slot])
                if one >= experts:
                    continue
                place = place_of[one]
                new = seen_place[place] != turn         # counted without a branch: whether it is new cannot be foretold
                seen_place[place] = turn
                near_places[layer, place] += np.uint32(new)
                node = node_of[one]
                new = seen_node[node] != turn
                seen_node[node] = turn
                near_nodes[layer, node] += np.uint32(new)
        if row + 1 == rows or source[row + 1] != source[row]:
            own = source[row]
            for layer in range(layers):
                for place in range(n_places):
                    places[layer, own, place] += near_places[layer, place]
                for node in range(n_nodes):
                    if node != own_node[own]:
                        nodes[layer, own, node] += near_nodes[layer, node]
            near_places[:] = 0
            near_nodes[:] = 0
