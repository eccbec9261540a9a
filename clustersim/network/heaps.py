"""Heaps of records (key, item), the lowest key in front. Inner loops only: it imports numba."""

from __future__ import annotations

from clustersim.jit import lean


@lean
def sift(heap, n, at, in_order):
    """Restore the heap of the first n records below place `at`; where `in_order`, of equal keys the lowest item is in front."""
    key = heap[at].key
    item = heap[at].item
    while True:
        child = 2 * at + 1
        if child >= n:
            break
        if child + 1 < n and (
            heap[child + 1].key < heap[child].key
            or (in_order and heap[child + 1].key == heap[child].key and heap[child + 1].item < heap[child].item)
        ):
            child += 1
        if heap[child].key >= key and not (in_order and heap[child].key == key and heap[child].item < item):
            break
        heap[at] = heap[child]
        at = child
    heap[at].key = key
    heap[at].item = item
