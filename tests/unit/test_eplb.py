"""DeepSeek's EPLB and the serving engines' variants: vectors of the reference implementations, and a slow version from the text.

The vectors: deepseek-ai/EPLB (README example and runs of eplb.py on the same loads), SGLang's eplb_algorithms, vLLM's
preserve_intragpu_slots, FasterMoE's shadow_policy.py.
"""

import numpy as np
import pytest

from clustersim.placement.deepseek import packed, rebalance, replicated
from clustersim.placement.serving import kept_in_place, nearest_with_room
from clustersim.placement.shadowing import shadowed
from clustersim.types import InputError, Placement
from tests.placed import load_alone, loads, place, tokens

# the two layers of the README of deepseek-ai/EPLB: 12 experts, 16 slots, 4 groups, 2 nodes, 8 GPUs
LOADS = np.array([
    [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
    [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
], float)  # fmt: skip
README = [[5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1], [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1]]
GLOBAL = [[10, 6, 10, 7, 0, 2, 11, 4, 5, 9, 5, 4, 8, 3, 1, 1], [1, 10, 2, 4, 5, 11, 5, 0, 6, 7, 6, 3, 8, 8, 9, 7]]


# ---- vectors


def test_the_readme_example_of_deepseek_comes_out_as_printed_there():
    expert_of, slots_of, count = rebalance(LOADS, n_slots=16, n_groups=4, n_nodes=2, n_gpus=8)
    assert expert_of.tolist() == README
    assert count.tolist() == [[1, 2, 1, 1, 2, 2, 1, 1, 1, 1, 2, 1], [1, 2, 1, 1, 1, 2, 2, 1, 2, 1, 1, 1]]
    assert slots_of[0].tolist() == [
        [12, -1], [15, 13], [11, -1], [6, -1], [7, 5], [0, 2], [1, -1], [3, -1], [4, -1], [9, -1], [8, 10], [14, -1],
    ]  # fmt: skip
    assert slots_of[1].tolist() == [
        [13, -1], [15, 11], [8, -1], [14, -1], [9, -1], [10, 12], [2, 4], [0, -1], [6, 3], [7, -1], [1, -1], [5, -1],
    ]  # fmt: skip
    for layer, p in enumerate(place("eplb", 12, 16, 8, past=load_alone(load), per_node=4, groups=4) for load in LOADS):
        assert p.expert_of.tolist() == README[layer]
    got = loads(LOADS[0], place("eplb_hierarchical", 12, 16, 8, past=load_alone(LOADS[0]), per_node=4, groups=4), 8)
    assert got.tolist() == [121.5, 86.5, 125.0, 113.0, 147.5, 131.5, 156.0, 152.0]


@pytest.mark.parametrize(("n_groups", "n_nodes"), [(1, 2), (4, 1)])
def test_groups_that_the_nodes_cannot_share_and_a_single_node_give_the_global_policy(n_groups, n_nodes):
    assert rebalance(LOADS, n_slots=16, n_groups=n_groups, n_nodes=n_nodes, n_gpus=8)[0].tolist() == GLOBAL
    for load, expected in zip(LOADS, GLOBAL, strict=True):
        p = place("eplb_global", 12, 16, 8, past=load_alone(load), per_node=4)
        assert p.expert_of.tolist() == expected
    balance = [loads(load, place("eplb_global", 12, 16, 8, past=load_alone(load)), 8) for load in LOADS]
    assert [round(b.max() / b.mean(), 6) for b in balance] == [1.072604, 1.190311]


def test_twelve_groups_on_three_nodes_without_redundancy():
    expert_of, slots_of, count = rebalance(LOADS, n_slots=12, n_groups=12, n_nodes=3, n_gpus=6)
    assert expert_of.tolist() == [[10, 7, 11, 9, 5, 6, 0, 3, 1, 2, 4, 8], [5, 4, 2, 3, 6, 10, 1, 9, 8, 0, 7, 11]]
    assert slots_of[0].ravel().tolist() == [6, 8, 9, 7, 10, 4, 5, 1, 11, 3, 0, 2]
    assert (count == 1).all()


def test_balanced_packing_and_longest_processing_time_first():
    for room in ([3] * 4, [12] * 4):            # here nobody would take a fourth anyway
        found = [packed(load, room) for load in LOADS]
        assert [pack.tolist() for pack, _ in found] == [
            [3, 2, 2, 0, 3, 1, 1, 0, 1, 3, 0, 2], [3, 3, 2, 0, 1, 0, 1, 3, 2, 1, 2, 0],
        ]  # fmt: skip
        assert [rank.tolist() for _, rank in found] == [
            [1, 0, 2, 1, 0, 0, 2, 2, 1, 2, 0, 1], [2, 1, 1, 1, 2, 0, 0, 0, 0, 1, 2, 2],
        ]  # fmt: skip
    assert packed(np.array([1.0, 5.0, 3.0]), [1, 1, 1])[0].tolist() == [0, 1, 2], "one item per pack: nothing is sorted"


def test_the_baselines_are_as_uneven_as_they_were_found_to_be():
    for name, worst in {"contiguous": [1.277832, 1.785467], "round_robin": [1.366893, 1.349481]}.items():
        found = [loads(load, place(name, 12, 12, 4), 4) for load in LOADS]
        assert [round(load.max() / load.mean(), 6) for load in found] == worst


def test_replicas_go_where_the_load_per_replica_is_largest():
    expert, rank, count = replicated(np.array([80.0, 10.0, 6.0, 4.0]), 8)
    assert expert.tolist() == [0, 1, 2, 3, 0, 0, 0, 0]
    assert rank.tolist() == [0, 0, 0, 0, 1, 2, 3, 4]
    assert count.tolist() == [5, 1, 1, 1]


def test_sglangs_vectorised_variant():
    found = [place("sglang_vec", 12, 16, 8, past=load_alone(load)).expert_of.tolist() for load in LOADS]
    assert found == [
        [10, 7, 10, 6, 0, 2, 11, 4, 5, 4, 5, 9, 8, 3, 1, 1], [1, 10, 2, 4, 5, 0, 5, 11, 6, 3, 6, 7, 8, 7, 9, 8],
    ]  # fmt: skip


def test_sglangs_variant_minds_every_step_and_not_only_their_sum():
    """Expert 0 has 6, then 0, expert 1 has 4, then 3. In sum 1 is busier, 7 to 6; but a replica of 0 lowers the largest loads
    from 6 + 3 to 4 + 3, one of 1 to 6 + 1.5."""
    steps = np.array([[6.0, 4.0], [0.0, 3.0]])
    assert np.bincount(place("sglang_vec", 2, 3, 1, past=load_alone(steps)).expert_of).tolist() == [2, 1]
    assert np.bincount(place("eplb", 2, 3, 1, past=load_alone(steps)).expert_of).tolist() == [1, 2]


def test_sglangs_topology_aware_puts_experts_where_their_tokens_are():
    by_source = np.array([[9.0, 1, 1, 1], [1, 9, 1, 2], [1, 1, 8, 1], [2, 1, 1, 7]])
    far = np.array([[0.0, 1, 4, 4], [1, 0, 4, 4], [4, 4, 0, 1], [4, 4, 1, 0]])
    gpu = nearest_with_room(by_source, far, np.ones(4, int))
    assert gpu.tolist() == [0, 1, 2, 3]
    assert (far * by_source[:, np.argsort(gpu)]).sum() == 44.0


def test_vllm_keeps_an_expert_that_stays_on_its_gpu_in_its_slot():
    assert kept_in_place(np.array([3, 1, 2, 0]), np.array([1, 5, 3, 6])).tolist() == [3, 1, 5, 6]
    past = load_alone(LOADS[0])
    plain = place("eplb_global", 12, 16, 8, past=past)
    old = Placement(gpu_of=plain.gpu_of, expert_of=plain.expert_of.reshape(8, 2)[:, ::-1].ravel())
    again = place("eplb_vllm", 12, 16, 8, past=type(past)(load=past.load, now=old))
    assert again.expert_of.tolist() == old.expert_of.tolist(), "nothing has to move inside a GPU"
    assert place("eplb_vllm", 12, 16, 8, past=past).expert_of.tolist() == plain.expert_of.tolist()


@pytest.mark.parametrize(
    ("load", "chosen", "milliseconds"),
    [
        ([20000, 2000, 1000, 1000], [0, 1], [279.924202, 38.729838, 35.471047, 46.208465]),
        ([8000, 7000, 6000, 5000], [0, 1, 2], [111.969681, 108.710889, 105.452097, 102.193305]),
        ([50000, 48000, 3000, 100], [0, 1, 2], [699.810504, 682.555502, 63.463467, 33.611876]),
    ],
)
def test_fastermoe_shadows_experts_while_the_modelled_time_falls(load, chosen, milliseconds):
    found, seconds = shadowed(
        np.array(load, float), hidden=2048, ffn_ratio=2.0, bandwidth=6.25e9, flops=11.5e12, value_bytes=4.0
    )
    assert found.tolist() == chosen
    assert (seconds * 1e3).round(6).tolist() == milliseconds


def test_a_shadowed_expert_stands_on_every_gpu_and_never_more_than_there_is_room_for():
    load = load_alone([20000.0, 2000, 1000, 1000])
    for spare, everywhere in ((0, []), (1, [0]), (2, [0, 1]), (3, [0, 1])):
        p = place("shadow", 4, 4 * (1 + spare), 4, past=load, hidden=2048, ffn_ratio=2.0)
        held = [set(p.expert_of[p.gpu_of == gpu].tolist()) for gpu in range(4)]
        assert all(e in held[gpu] for e in everywhere for gpu in range(4))
        assert all(gpu in held[gpu] for gpu in range(4)), "what is not shadowed stays where it was"


# ---- an independent version


def slow_eplb(load, n_slots, n_groups, n_nodes, n_gpus):
    """EPLB written from its description alone: expert of every slot. All lists, no order kept that could be wrong twice."""
    if n_groups % n_nodes:
        n_groups = n_nodes = 1

    def pack(weights, n_packs):
        size = len(weights) // n_packs
        packs = [[] for _ in range(n_packs)]
        if size == 1:
            return [[item] for item in range(n_packs)]
        for item in sorted(range(len(weights)), key=lambda item: (-weights[item], item)):
            open_packs = [pack for pack in range(n_packs) if len(packs[pack]) < size]
            packs[min(open_packs, key=lambda pack: (sum(weights[i] for i in packs[pack]), pack))].append(item)
        return packs

    size = len(load) // n_groups
    groups = [list(range(g * size, (g + 1) * size)) for g in range(n_groups)]
    slots = []
    for node in pack([sum(load[e] for e in group) for group in groups], n_nodes):
        experts = [e for g in node for e in groups[g]]
        copies = list(experts)
        while len(copies) < n_slots // n_nodes:
            copies.append(max(experts, key=lambda e: (load[e] / copies.count(e), -experts.index(e))))
        shares = [load[e] / copies.count(e) for e in copies]
        slots += [copies[i] for gpu in pack(shares, n_gpus // n_nodes) for i in gpu]
    return slots


def test_500_random_loads_give_what_the_slow_version_gives():
    rng = np.random.default_rng(3)
    shapes = [(12, 16, 4, 2, 8), (32, 40, 8, 2, 8), (16, 16, 4, 4, 8), (24, 36, 3, 3, 6), (20, 30, 1, 2, 10), (8, 24, 2, 2, 4)]
    for i in range(500):
        n_experts, n_slots, n_groups, n_nodes, n_gpus = shapes[i % len(shapes)]
        load = rng.lognormal(0, rng.uniform(0.1, 2), n_experts)
        found, slots_of, count = rebalance(load[None], n_slots=n_slots, n_groups=n_groups, n_nodes=n_nodes, n_gpus=n_gpus)
        assert found[0].tolist() == slow_eplb(load.tolist(), n_slots, n_groups, n_nodes, n_gpus)
        for expert in range(n_experts):
            own = slots_of[0, expert]
            assert sorted(own[own >= 0].tolist()) == np.flatnonzero(found[0] == expert).tolist()
            assert (own >= 0).sum() == count[0, expert]


def test_a_group_of_experts_stays_in_one_node_under_the_hierarchical_policy():
    past = tokens(32, 16, skew=2.0)
    p = place("eplb_hierarchical", 32, 48, 16, past=past, per_node=4, groups=8)
    for group in range(8):
        nodes = set((p.gpu_of[np.isin(p.expert_of, range(4 * group, 4 * group + 4))] // 4).tolist())
        assert len(nodes) == 1


def test_numbers_that_do_not_divide_each_other_are_refused_with_those_that_would_do():
    with pytest.raises(InputError, match=r"placement\.groups=5: 12 experts .* equal groups so; 1, 2, 3, 4, 6, 12 would do"):
        place("eplb", 12, 16, 8, groups=5)
    with pytest.raises(InputError, match=r"placement\.groups=3: 2 nodes cannot share them evenly; 2, 4, 6, 12 would do"):
        place("eplb_hierarchical", 12, 16, 8, per_node=4, groups=3)
    with pytest.raises(InputError, match=r"placement\.flops=0"):
        place("shadow", 4, 4, 4, hidden=2048, flops=0.0)
