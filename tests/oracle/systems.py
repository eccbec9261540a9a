"""Flows over links by kind and seed: what our solver and another simulator are both asked. No solver here.

Bytes and times are drawn from raw 64-bit integers, whose stream NumPy promises to keep; what is drawn is rounded, so that the
last bit of a logarithm does not matter.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from clustersim import flow_times, load_cluster
from clustersim.cluster import Cluster
from clustersim.network.bounds import busiest_link_end
from clustersim.types import Floats, Ints, Routes
from tests.matrices import skewed, uniform


@dataclass(frozen=True, eq=False, kw_only=True)
class System:
    """Flows over links; seconds, bytes, bytes/s."""

    name: str
    capacity: Floats                                            # [links]
    routes: list[list[int]]                                     # [flows]
    nbytes: Floats                                              # [flows] whole numbers: SimGrid counts bytes
    release: Floats                                             # [flows]
    rate_cap: Floats | None = None                              # [flows] inf: none
    changes: list[tuple[float, int, float]] = field(default_factory=list)       # time, link, capacity from then on

    @property
    def n(self) -> int:
        return self.nbytes.size

    def question(self) -> dict[str, object]:
        """The arguments of `clustersim.flow_times`."""
        asked = {key: getattr(self, key) for key in ("capacity", "routes", "nbytes", "release")}
        return asked | ({"changes": self.changes} if self.changes else {}) | (
            {} if self.rate_cap is None else {"rate_cap": self.rate_cap}
        )

    def bound(self) -> float:
        """When the busiest link could be through at the earliest; links as they are at the start, caps not looked at."""
        links = np.array([link for route in self.routes for link in route], np.int64)
        start = np.cumsum([0, *map(len, self.routes)])
        routes = Routes(start=start, links=links, weights=np.ones(links.size), latency=np.zeros(self.n))
        return busiest_link_end(self.capacity, routes, self.nbytes, self.release)[0]

    def digest(self) -> int:
        """Changes when what is drawn does, so that another random stream is not taken for another answer."""
        drawn = [self.nbytes, self.release, [] if self.rate_cap is None else self.rate_cap, np.ravel(self.changes)]
        return zlib.crc32(b"".join(np.asarray(values, np.float64).tobytes() for values in drawn))


class Draws:
    """Random numbers from raw bits."""

    def __init__(self, *key: int) -> None:
        self._bits = np.random.PCG64(key)

    def uniform(self, n: int) -> Floats:
        """[0, 1)."""
        return (self._bits.random_raw(n) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def whole(self, low: int, high: int, n: int) -> Ints:
        """low to high, both included."""
        return (low + np.floor(self.uniform(n) * (high - low + 1))).astype(np.int64)

    def one(self, low: int, high: int) -> int:
        return int(self.whole(low, high, 1)[0])

    def some(self, of: int, k: int) -> list[int]:
        """k different ones of 0 ... of - 1."""
        return np.argsort(self.uniform(of))[:k].tolist()

    def exponential(self, mean: float, n: int) -> Floats:
        """To a millionth of the mean."""
        return np.round(-np.log1p(-self.uniform(n)), 6) * mean

    def heavy_tailed(self, n: int, least: float = 1e5, shape: float = 0.9) -> Floats:
        """Pareto, in whole bytes, none above 10,000 times the least."""
        return np.floor(least * np.minimum(1e4, (1 - self.uniform(n)) ** (-1 / shape)))


def between_gpus(name: str, cluster: Cluster, nbytes: Floats, entry: Floats | float = 0.0) -> System:
    """The pairs of a byte matrix on a machine; each GPU's flows start when it enters."""
    src, dst = np.nonzero(nbytes)
    routes = cluster.routes(src, dst)
    return System(
        name=name, capacity=cluster.capacity, routes=[row.tolist() for row in np.split(routes.links, routes.start[1:-1])],
        nbytes=nbytes[src, dst], release=np.broadcast_to(entry, nbytes.shape[0])[src].astype(np.float64),
    )  # fmt: skip


def rails(n: int) -> Cluster:
    return load_cluster("ideal_rail", nodes=n // 8)


def spine(n: int, oversubscription: float = 2.0, *, per_rail: bool = False) -> Cluster:
    """Leaves with half the capacity above that they have below, one per node or one per rail."""
    return load_cluster("ideal_rail", nodes=n // 8, nic={"oversubscription": oversubscription, "rails": per_rail})


def direct_uniform(n: int, seed: int) -> System:
    return between_gpus(f"n={n}", rails(n), uniform(n, 2.0**20 * (seed + 1)))


def direct_skewed(n: int, seed: int) -> System:
    return between_gpus(f"n={n} seed={seed}", rails(n), skewed(n, seed))


def leaf_and_spine(n: int, seed: int) -> System:
    """Few tokens, mild skew: neither the NICs nor the uplinks are the bottleneck everywhere."""
    nbytes = skewed(n, seed, zipf=0.6, tokens=256)
    return between_gpus(f"n={n} seed={seed}", spine(n, per_rail=seed % 2 == 1), nbytes)


def staggered(n: int, seed: int) -> System:
    """The same, and skewed ones without a spine; GPUs enter over a third of the time that it takes."""
    entry = Draws(1, n, seed).exponential(1e-4, n)
    if seed >= 100:
        return between_gpus(f"n={n} seed={seed}", rails(n), skewed(n, seed, tokens=256), entry)
    return between_gpus(f"n={n} seed={seed}", spine(n, per_rail=seed % 2 == 1), skewed(n, seed, zipf=0.6, tokens=256), entry)


def sparse_heavy_tailed(n: int, seed: int) -> System:
    """Four destinations a source on average, sizes over four orders of magnitude, equal ports."""
    draws = Draws(2, n, seed)
    nbytes = draws.heavy_tailed(n * n) * (draws.uniform(n * n) < 4 / n)
    nbytes = nbytes.reshape(n, n) * ~np.eye(n, dtype=bool)
    src, dst = np.nonzero(nbytes)
    return System(
        name=f"n={n} seed={seed}", capacity=np.full(2 * n, 50e9), routes=np.stack((src, n + dst), axis=1).tolist(),
        nbytes=nbytes[src, dst], release=np.zeros(src.size),
    )  # fmt: skip


def long_routes(n: int, seed: int) -> System:
    """n flows of 1 to 6 links each, over n / 6 links, released one after the other."""
    draws = Draws(3, n, seed)
    n_links = max(6, n // 6)
    return System(
        name=f"n={n} seed={seed}", capacity=np.array([40e9, 50e9])[draws.whole(0, 1, n_links)],
        routes=[draws.some(n_links, int(length)) for length in draws.whole(1, 6, n)],
        nbytes=np.floor(draws.exponential(1e8, n)) + 1e6, release=draws.exponential(5e-3, n),
    )  # fmt: skip


def capped(n: int, seed: int) -> System:
    """The same; half of the flows may not go faster than a cap of their own."""
    base, draws = long_routes(n, seed + 1000), Draws(4, n, seed)
    caps = np.where(draws.uniform(n) < 0.5, np.floor(20e9 * draws.uniform(n)) + 1e8, np.inf)
    return System(**{**vars(base), "name": f"n={n} seed={seed}", "rate_cap": caps})


def changing(n: int, seed: int) -> System:
    """The same; links get slower and faster while flows run."""
    base, draws = long_routes(n, seed + 2000), Draws(5, n, seed)
    links = draws.whole(0, base.capacity.size - 1, 20)
    times = np.sort(draws.exponential(4e-3, 20))
    factors = np.array([0.125, 0.25, 0.5, 2.0])[draws.whole(0, 3, 20)]
    changes = [(float(t), int(x), float(base.capacity[x] * f)) for t, x, f in zip(times, links, factors, strict=True)]
    return System(**{**vars(base), "name": f"n={n} seed={seed}", "changes": changes})


def small(n: int, seed: int) -> System:
    """Up to n flows over up to n / 2 links, in small whole numbers: much happens at one instant."""
    draws = Draws(6, n, seed)
    n_links, n_flows = draws.one(2, n // 2), draws.one(2, n)
    return System(
        name=f"seed={seed}", capacity=draws.whole(1, 30, n_links).astype(np.float64),
        routes=[draws.some(n_links, draws.one(1, min(n_links, 6))) for _ in range(n_flows)],
        nbytes=draws.whole(1, 100, n_flows).astype(np.float64),
        release=(draws.whole(0, 20, n_flows) * (draws.uniform(n_flows) < 0.5)).astype(np.float64),
    )  # fmt: skip


# Sharing alone decides the makespan of few systems: T / bound is 1 on most. Of the sparse ones, the staggered ones and those of
# long routes most are therefore the first seeds with T / bound > 1.05 (`where_sharing_decides`).
KINDS: dict[str, tuple[Callable[[int, int], System], dict[int, Sequence[int]]]] = {       # maker; n -> seeds
    "direct, uniform": (direct_uniform, {8: [0], 16: [1], 32: [2], 64: [3], 128: [0]}),
    "direct, skewed": (direct_skewed, {8: [0, 1], 16: [0, 1], 32: [0, 1], 64: [0, 1], 128: [0]}),
    "2:1 leaf and spine": (leaf_and_spine, {16: [0, 1, 2, 4], 32: range(6), 64: [0, 1]}),
    "staggered entries": (staggered, {16: [6, 10, 17, 100], 32: [0, 9, 12, 101], 64: [2, 3]}),
    "sparse, heavy tailed": (
        sparse_heavy_tailed, {8: [38, 81, 88, 101, 123, 128, 158, 213], 16: [0, 162], 32: [71], 64: [0, 143, 189]},
    ),
    "routes of 1 to 6 links": (long_routes, {24: [0, 4, 27, 28, 33, 44], 96: [0, 86, 89, 148], 240: [0, 61, 72]}),
    "rate caps": (capped, {24: range(4), 96: [0], 240: [0]}),
    "capacities that change": (changing, {24: range(4), 96: [0], 240: [0]}),
    "small": (small, {14: range(30)}),
}  # fmt: skip


def where_sharing_decides(make: Callable[[int, int], System], n: int, seeds: Iterable[int]) -> Iterator[tuple[int, float]]:
    """The seeds whose makespan is more than 5 % above the bound of the busiest link, and how far."""
    for seed in seeds:
        system = make(n, seed)
        ratio = flow_times(**system.question()).max() / system.bound()
        if ratio > 1.05:
            yield seed, float(ratio)
