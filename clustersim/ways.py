"""The shortest ways between GPUs over a set of links, counted and walked for many pairs at once. Does not choose among them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from clustersim.types import Floats, InputError, Ints

Bools = NDArray[np.bool_]
MOST_LINKS = 2**26          # of all routes of one exchange: 1 GiB
MOST_WAYS = 2**32           # between two GPUs; more are a mistake, and their sums would overflow


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Ragged:
    """Links of many rows one behind the other, `length[i]` in row i, each with the share of the row's bytes on it."""

    length: Ints
    links: Ints
    shares: Floats


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Ways:
    """All ways with the fewest hops between GPUs over some links of a machine.

    GPUs on the same switches reach others by the same ways, so they share one *start* and one *end*: nodes of a small
    graph, whose edges are ports of the GPU (told apart by number) or links between switches. For every end y the edges that
    are on a shortest way to y make a graph without cycles; `count` is the number of ways in it.
    """

    start_of: Ints              # [gpus] node at which ways from the GPU begin; -1: it has no link out
    end_of: Ints                # [gpus] column of ways to the GPU; -1: it has no link in
    up: Ints                    # [gpus, ports] link of each port, towards the network
    down: Ints                  # [gpus, ports] and from it
    tail: Ints                  # [edges] sorted
    head: Ints                  # [edges]
    first: Ints                 # [nodes + 1] where the edges of each node begin
    link: Ints                  # [edges] link; -1 - p: port p of the GPU that sends; -1 - ports - p: of the one that receives
    hops: NDArray[np.int32]     # [nodes, ends] fewest hops to each end, FAR where there is no way
    count: Ints                 # [nodes, ends] ways of that length
    before: Ints                # [ends * edges + 1] ways that begin with an earlier edge; all edges for one end, then the next

    def reaches(self, src: Ints, dst: Ints) -> Bools:
        """Whether there is a way, bool in the broadcast shape of `src` and `dst`."""
        if not self.hops.size:
            return np.zeros(np.broadcast_shapes(src.shape, dst.shape), bool)
        a, b = self.start_of[src], self.end_of[dst]
        reached: Bools = (a >= 0) & (b >= 0) & (self.hops[a, b] < FAR)
        return reached

    @property
    def links(self) -> Ints:
        """All links that there are ways over, rising."""
        every = np.unique(np.concatenate((self.up.ravel(), self.down.ravel(), self.link)))
        return every[every >= 0]

    def number(self, src: Ints, dst: Ints) -> Ints:
        """How many shortest ways each pair has, int [pairs]; the pairs are reached."""
        ways: Ints = self.count[self.start_of[src], self.end_of[dst]]
        return ways

    def take(self, src: Ints, dst: Ints, rank: Ints) -> Ragged:
        """The `rank`-th of the shortest ways of each pair [pairs], from 0 up, all bytes on it; the pairs are reached."""
        if not src.size:
            return Ragged(length=src, links=src, shares=np.zeros(0))
        a, b = self.start_of[src], self.end_of[dst]
        most = int(self.count.max(initial=1))
        if self.count.size * most < 2**62:
            chosen, which = _distinct((a * self.hops.shape[1] + b) * most + rank, self.count.size * most)
        else:
            chosen = which = np.arange(a.size)
        length, edges = self._walk(a[chosen], b[chosen], rank[chosen])
        length, entries = repeat_rows(length, which)
        links = self._links(self.link[edges][entries], length, src, dst)
        return Ragged(length=length, links=links, shares=np.ones(links.size))

    def first_way(self, src: Ints, dst: Ints, *, up: int, down: int) -> Ragged:
        """The first of the shortest ways of each pair [pairs], no port filled in: -1 - `up` - p stands for port p of the GPU
        that sends, -1 - `down` - p for one of the GPU that receives.
        """
        ports = self.up.shape[1]
        length, edges = self._walk(self.start_of[src], self.end_of[dst], np.zeros(src.size, np.int64))
        link = self.link[edges]
        moved = np.where(link < -ports, link + ports - down, link - up)
        return Ragged(length=length, links=np.where(link < 0, moved, link), shares=np.ones(link.size))

    def share(self, src: Ints, dst: Ints) -> Ragged:
        """All shortest ways of each pair [pairs] together, the same share of the bytes on each; links come once, in order of
        their distance from the source. The pairs are reached.
        """
        if not src.size:
            return Ragged(length=src, links=src, shares=np.zeros(0))
        a, b = self.start_of[src], self.end_of[dst]
        key, which = np.unique(a * self.hops.shape[1] + b, return_inverse=True)
        length, edges, shares = self._spread(key // self.hops.shape[1], key % self.hops.shape[1])
        if (total := int(length[which].sum())) > MOST_LINKS:
            raise InputError(
                f"topology.routing.name=spray: {total:,} links for {src.size:,} transfers are too many; an even spread over "
                "equal links is one link of their sum, so give the fabric fewer (spines: 1)"
            )
        length, entries = repeat_rows(length, which)
        links = self._links(self.link[edges][entries], length, src, dst)
        return Ragged(length=length, links=links, shares=shares[entries])

    def _walk(self, node: Ints, end: Ints, rank: Ints) -> tuple[Ints, Ints]:
        """Edges of the `rank`-th way of each row: lengths [rows], and the edges row by row."""
        n_edges, rows = self.head.size, np.arange(node.size)
        steps: list[tuple[Ints, Ints]] = []
        while rows.size:
            target = self.before[end * n_edges + self.first[node]] + rank
            at = np.searchsorted(self.before, target, side="right") - 1
            edge = at - end * n_edges
            steps.append((rows, edge))
            node, rank = self.head[edge], target - self.before[at]
            on = self.hops[node, end] > 0
            rows, node, end, rank = rows[on], node[on], end[on], rank[on]
        length = np.zeros(len(steps[0][0]) if steps else 0, np.int64)
        for rows, _ in steps:
            length[rows] += 1
        begin, edges = np.cumsum(length) - length, np.empty(int(length.sum()), np.int64)
        for step, (rows, edge) in enumerate(steps):
            edges[begin[rows] + step] = edge
        return length, edges

    def _spread(self, node: Ints, end: Ints) -> tuple[Ints, Ints, Floats]:
        """Edges of all ways of each row with their shares: lengths [rows], and the others row by row, nearest first."""
        n_nodes, rows = self.hops.shape[0], np.arange(node.size)
        shares: Floats = np.ones(node.size)
        found: list[tuple[Ints, Ints, Floats]] = []
        while rows.size:
            left = self.hops[node, end[rows]]
            now = np.flatnonzero(left == left.max())        # nothing that is still to come leads to these
            degree = self.first[node[now] + 1] - self.first[node[now]]
            of = np.repeat(now, degree)
            edge = np.arange(of.size) - np.repeat(np.cumsum(degree) - degree - self.first[node[now]], degree)
            at = end[rows[of]] * self.head.size + edge
            ways = self.before[at + 1] - self.before[at]
            of, edge, ways = of[ways > 0], edge[ways > 0], ways[ways > 0]
            part = shares[of] * ways / self.count[node[of], end[rows[of]]]
            found.append((rows[of], edge, part))
            later = left < left.max()
            rows = np.concatenate((rows[later], rows[of]))
            node, shares = np.concatenate((node[later], self.head[edge])), np.concatenate((shares[later], part))
            key, which = np.unique(rows * n_nodes + node, return_inverse=True)      # ways that meet go on as one
            rows, node, shares = key // n_nodes, key % n_nodes, np.bincount(which, shares, key.size).astype(np.float64)
            on = self.hops[node, end[rows]] > 0
            rows, node, shares = rows[on], node[on], shares[on]
        row, edges, parts = (np.concatenate([step[i] for step in found]) for i in range(3))
        order = np.argsort(row, kind="stable")
        return np.bincount(row, minlength=end.size), edges[order], parts[order]

    def _links(self, links: Ints, length: Ints, src: Ints, dst: Ints) -> Ints:
        """`links` of rows with the ports in it replaced by the links of each row's GPUs."""
        ports = self.up.shape[1]
        rows = np.repeat(np.arange(length.size), length)
        for gpus, table, low in ((src, self.up, -1), (dst, self.down, -1 - ports)):
            at = np.flatnonzero((links <= low) & (links > low - table.shape[1]))
            links[at] = table[gpus[rows[at]], low - links[at]]
        return links


FAR = np.iinfo(np.int32).max // 2       # hops where there is no way


def _distinct(key: Ints, n: int) -> tuple[Ints, Ints]:
    """Where one of each distinct key stands, and which of those each key equals; keys are from 0 to n - 1."""
    if n > 8 * key.size:
        _, chosen, which = np.unique(key, return_index=True, return_inverse=True)
        return chosen, which
    place = np.full(n, -1)                      # a table of all keys, where that is shorter than sorting them
    place[key] = np.arange(key.size)
    there = np.flatnonzero(place >= 0)
    chosen = place[there]
    place[there] = np.arange(there.size)
    return chosen, place[key]


def in_one_block(n_ints: list[int], n_floats: list[int]) -> tuple[list[Ints], list[Floats]]:
    """Arrays of these lengths, not set, in one piece: Linux gives a large one pages of 2 MiB, of which few are to be cleared."""
    block = np.empty(sum(n_ints) + sum(n_floats))
    parts = np.split(block, np.cumsum([*n_ints, *n_floats]))
    return [part.view(np.int64) for part in parts[: len(n_ints)]], parts[len(n_ints) : -1]


def repeat_rows(length: Ints, which: Ints) -> tuple[Ints, Ints]:
    """Rows picked from ragged ones: the lengths of rows `which`, and the places of their entries in the old ones."""
    begin, picked = np.cumsum(length) - length, length[which]
    return picked, np.arange(picked.sum()) + np.repeat(begin[which] - (np.cumsum(picked) - picked), picked)


def concatenated(parts: list[Ragged]) -> Ragged:
    """Rows joined end to end: row i of the first part, then row i of the second, and so on."""
    length = np.sum([part.length for part in parts], axis=0)
    links, shares = np.empty(int(length.sum()), np.int64), np.empty(int(length.sum()))
    begin = np.cumsum(length) - length
    for part in parts:
        at = np.arange(part.links.size) + np.repeat(begin - (np.cumsum(part.length) - part.length), part.length)
        links[at], shares[at] = part.links, part.shares
        begin = begin + part.length
    return Ragged(length=length, links=links, shares=shares)


def shortest_ways(graph: nx.DiGraph, n_gpus: int, links: Collection[int]) -> Ways:
    """The ways over `links` (numbers, the edges' attribute `link`) between the GPUs of a graph.

    Raises:
        InputError: more ways between two GPUs than can be counted.
    """
    out: list[dict[str, int]] = [{} for _ in range(n_gpus)]         # [gpus] switch -> link
    back: list[dict[str, int]] = [{} for _ in range(n_gpus)]
    straight: list[tuple[int, int, int]] = []                       # GPU to GPU
    inner: list[tuple[str, str, int, int]] = []
    for a, b, data in graph.edges(data=True):
        link = data["link"]
        if link not in links:
            continue
        if isinstance(a, str) and isinstance(b, str):
            inner.append((a, b, link, data["hops"]))
        elif isinstance(a, str):
            back[b[1]][a] = link
        elif isinstance(b, str):
            out[a[1]][b] = link
        else:
            straight.append((a[1], b[1], link))
    nodes: dict[object, int] = {}                                   # switches, and one for all GPUs that are joined alike
    begin, senders = _alike("from", out, {a for a, _, _ in straight}, nodes)
    end, receivers = _alike("to", back, {b for _, b, _ in straight}, nodes)
    ports = max((len(each) for each in (*out, *back)), default=0)

    def place(switch: str) -> int:
        return nodes.setdefault(switch, len(nodes))

    edges = [(v, place(switch), -1 - p, 1) for v, g in senders.items() for p, switch in enumerate(out[g])]
    edges += [(place(switch), v, -1 - ports - p, 1) for v, g in receivers.items() for p, switch in enumerate(back[g])]
    edges += [(place(a), place(b), link, hops) for a, b, link, hops in inner]
    edges += [(begin[a], end[b], link, 1) for a, b, link in straight]
    goals = np.array(list(receivers), np.int64)
    columns = np.append(np.searchsorted(goals, end), -1)        # a GPU that nothing leads to has end -1
    tail, head, link, length = np.array(sorted(edges, key=lambda edge: (edge[0], abs(edge[2]))), np.int64).reshape(-1, 4).T
    first = np.searchsorted(tail, np.arange(len(nodes) + 1))
    hops, count = _counted(tail, head, length.astype(np.int32), first, goals)
    on_way = (hops[head] + length[:, None] == hops[tail]) & (hops[head] < FAR)
    before = np.concatenate(([0], np.cumsum(np.where(on_way, count[head], 0).T.ravel())))
    return Ways(
        start_of=np.array(begin, np.int64), end_of=np.where(np.array(end) < 0, -1, columns[: n_gpus]), up=_table(out, ports),
        down=_table(back, ports), tail=tail, head=head, first=first, link=link, hops=hops, count=count, before=before,
    )  # fmt: skip


def _alike(
    side: str, joined: list[dict[str, int]], straight: set[int], nodes: dict[object, int]
) -> tuple[list[int], dict[int, int]]:
    """The node of every GPU, -1 for one without links; and one GPU of each node. A GPU joined to another is like no other."""
    places: list[int] = []
    one_of: dict[int, int] = {}
    for g, switches in enumerate(joined):
        if switches or g in straight:
            places.append(nodes.setdefault((side, *switches, g if g in straight else -1), len(nodes)))
            one_of.setdefault(places[-1], g)
        else:
            places.append(-1)
    return places, one_of


def _table(joined: list[dict[str, int]], ports: int) -> Ints:
    """The links of each GPU's ports, int [gpus, ports]; -1 beyond the last."""
    table = np.full((len(joined), ports), -1)
    for g, switches in enumerate(joined):
        table[g, : len(switches)] = list(switches.values())
    return table


def _counted(tail: Ints, head: Ints, length: NDArray[np.int32], first: Ints, goals: Ints) -> tuple[NDArray[np.int32], Ints]:
    """Fewest hops to each goal and the ways of that length, both int [nodes, goals]. Edges are sorted by `tail`."""
    hops = np.full((first.size - 1, goals.size), FAR, np.int32)
    hops[goals, np.arange(goals.size)] = 0
    count = np.zeros(hops.shape, np.int64)
    count[goals, np.arange(goals.size)] = 1
    if not tail.size:
        return hops, count
    some = np.flatnonzero(np.diff(first))               # nodes with edges; reduceat knows no empty rows
    while True:
        nearer = np.minimum(hops[some], np.minimum.reduceat(hops[head] + length[:, None], first[some]))
        if (nearer == hops[some]).all():
            break
        hops[some] = nearer
    on_way = (hops[head] + length[:, None] == hops[tail]) & (hops[head] < FAR)
    while True:
        ways = np.add.reduceat(np.where(on_way, count[head], 0), first[some])
        ways = np.where(hops[some] > 0, ways, 1) * (hops[some] < FAR)
        if (ways == count[some]).all():
            return hops, count
        if ways.max() > MOST_WAYS:
            raise InputError("topology: there are more than 2^32 shortest ways between two GPUs; join switches by fewer links")
        count[some] = ways
