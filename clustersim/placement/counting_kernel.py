"""The loop that counts where the choices of tokens go. Inner loop only: import this module late, it imports numba."""

from __future__ import annotations

from clustersim.jit import lean


@lean
def slots_by_hash(asked, where, hashed, even, start, count, order, slots):
    """Slot number (hash mod count) of the list that `where` names, of every choice [tokens, top_k]; -1 where nothing is asked.

    even: as many in every list, or 0; then one division per token does for all its choices.
    """
    for t in range(asked.shape[0]):
        replica = hashed[t] % even if even else 0
        for j in range(asked.shape[1]):
            if asked[t, j] < 0:
                slots[t, j] = -1
                continue
            named = where[t, j]
            slots[t, j] = order[start[named] + (replica if even else hashed[t] % count[named])]


@lean
def count_tokens(slots, source, gpu_of, node_of, seen_gpu, seen_node, load, kept, reached):
    """Of slots [tokens, top_k]: choices of each GPU (`load`) and slot (`kept`), and where tokens go to, each place once.

    `seen_*` hold the last token that was counted there, -1 at first. reached: GPUs, nodes, nodes that are not the token's own.
    """
    for t in range(slots.shape[0]):
        own = node_of[source[t]]
        for j in range(slots.shape[1]):
            slot = slots[t, j]
            if slot < 0:
                continue
            gpu = gpu_of[slot]
            kept[slot] += 1
            load[gpu] += 1
            if seen_gpu[gpu] == t:
                continue
            seen_gpu[gpu] = t
            reached[0] += 1
            node = node_of[gpu]
            if seen_node[node] != t:
                seen_node[node] = t
                reached[1] += 1
                reached[2] += node != own
