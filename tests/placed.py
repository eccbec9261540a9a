"""Placements for tests: by name, on so many slots and GPUs, with whatever past the test has."""

import numpy as np

from clustersim import placement
from clustersim.pick import pick
from clustersim.placement.exact import least_load
from clustersim.placement.past import Past, Room


def load_alone(load):
    """A past of which only the load is known, [experts] or [steps, experts]."""
    return Past(load=np.atleast_2d(np.asarray(load, np.float64)))


def room(n_slots, n_gpus, per_node=None):
    """Slots dealt evenly, or a list of them; nodes of `per_node` GPUs, or one node."""
    slots_of = np.full(n_gpus, n_slots // n_gpus) if isinstance(n_slots, int) else np.array(n_slots)
    return Room(slots_of=slots_of, node_of=np.arange(n_gpus) // (per_node or n_gpus))


def place(name, n_experts, n_slots, n_gpus, *, past=None, per_node=None, seed=0, **options):
    """The placement `name`; without a past every expert has the same load."""
    past = load_alone(np.ones(n_experts)) if past is None else past
    return pick(placement, name, **options)(np.random.default_rng(seed), past, room(n_slots, n_gpus, per_node))


def contiguous(n_experts, n_slots, n_gpus):
    return place("contiguous", n_experts, n_slots, n_gpus)


def round_robin(n_experts, n_slots, n_gpus):
    return place("round_robin", n_experts, n_slots, n_gpus)


def loads(load, p, n_gpus):
    """Load of every GPU when replicas share equally, float [gpus]."""
    count = np.bincount(p.expert_of, minlength=load.size)
    return np.bincount(p.gpu_of, (load / count)[p.expert_of], n_gpus)


def tokens(n_experts, n_gpus, *, top_k=4, per_gpu=32, steps=1, seed=0, skew=1.0, price=None, cost=None):
    """A past of random tokens, popular experts more often; `steps` steps, tokens ordered by step, then GPU."""
    rng = np.random.default_rng(seed)
    n = per_gpu * n_gpus * steps
    asked = (rng.gumbel(size=(n, n_experts)) + skew * rng.normal(size=n_experts)).argsort(axis=1)[:, -top_k:]
    step = np.repeat(np.arange(steps), per_gpu * n_gpus)
    load = np.zeros((steps, n_experts))
    np.add.at(load, (np.repeat(step, top_k), asked.ravel()), 1)
    return Past(
        load=load, asked=asked, source=np.tile(np.repeat(np.arange(n_gpus), per_gpu), steps),
        index=np.tile(np.arange(per_gpu), n_gpus * steps), step=step, price=price, cost=cost,
    )


def small_cases(n):
    """(load of the best heuristic over a bound below the optimum, less 1; its name), of n random cases."""
    rng = np.random.default_rng(6)
    for i in range(n):
        n_gpus = int(rng.integers(2, 5))
        n_experts = int(rng.integers(n_gpus, 13))
        each = -(-n_experts // n_gpus) + (i % 3 == 0)
        load = rng.lognormal(0, rng.uniform(0.2, 1.2), n_experts)
        _, bound, _ = least_load(load, np.full(n_gpus, each), 2.0)
        past = load_alone(load)
        found = {
            name: loads(load, place(name, n_experts, n_gpus * each, n_gpus, past=past, **options), n_gpus).max()
            for name, options in {
                "eplb": {}, "lpt": {}, "local_search": {"seconds": 0.0, "load": 1.0}, "annealing": {"seconds": 0.0, "load": 1.0},
            }.items()
        }  # fmt: skip
        best = min(found, key=found.get)
        assert found[best] >= bound * (1 - 1e-6), "nothing beats the optimum"
        yield found[best] / bound - 1, best
