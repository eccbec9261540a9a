"""Where a slot lives, what it holds, and which replica a token goes to. Small enough to check by hand."""

from types import SimpleNamespace

import numpy as np
import pytest

from clustersim.placement import replicas
from clustersim.placement.measures import least_max_load
from clustersim.placement.past import room_for
from clustersim.types import InputError, Placement, Routing
from tests.placed import contiguous, place, round_robin

TWO_NODES_OF_TWO = np.array([0, 0, 1, 1])


# ---- the room


@pytest.mark.parametrize(
    ("n_experts", "n_gpus", "spare", "slots"), [(32, 64, 0, 64), (256, 64, 0, 256), (60, 8, 0, 64), (60, 8, 2, 80)]
)
def test_slots_default_to_the_next_multiple_of_the_gpus_and_spare_ones_are_counted_per_gpu(n_experts, n_gpus, spare, slots):
    room = room_for(None, spare, n_experts, np.zeros(n_gpus, int))
    assert room.n_slots == slots
    assert (room.slots_of == slots // n_gpus).all()


def test_a_list_gives_each_gpu_its_own_number_of_slots():
    room = room_for([3, 1, 2, 2], 0, 8, TWO_NODES_OF_TWO)
    assert room.gpu_of.tolist() == [0, 0, 0, 1, 2, 2, 3, 3]
    assert room.n_nodes == 2


@pytest.mark.parametrize(
    ("slots", "spare", "said"),
    [
        (16, 0, r"placement\.slots=16: fewer slots than the 32 experts.*at least 32 on 8 GPUs"),
        (44, 0, r"placement\.slots=44: the 8 GPUs cannot share them evenly; 40 or 48 would do"),
        (33, 0, r"placement\.slots=33: the 8 GPUs cannot share them evenly; 32 or 40 would do"),
        ([4] * 7, 0, r"placement\.slots: a list of 7 numbers for 8 GPUs"),
        ([4] * 7 + [3], 0, r"placement\.slots=\[4,4,4,4,4,4,4,3\] in all 31: fewer slots than the 32 experts"),
        ([4] * 7 + [-1], 0, r"placement\.slots: -1 in the list"),
        ("many", 0, r"placement\.slots=many: must be a whole number, a list .* or null"),
        (32, 1, r"placement\.spare=1: .* placement\.slots=32 is set"),
        (None, -1, r"placement\.spare=-1: must be a whole number from 0 up"),
    ],
)  # fmt: skip
def test_slots_that_cannot_be_are_refused_with_those_that_would_do(slots, spare, said):
    with pytest.raises(InputError, match=said):
        room_for(slots, spare, 32, np.zeros(8, int))


def test_no_placement_has_less_than_the_mean_nor_than_the_busiest_expert_shared_by_all_its_replicas():
    """Four GPUs. Loads 90, 10, 10, 10 and a slot each: 90. Two slots more: three replicas of 30, where the mean is 30 too. Even
    loads: the mean.
    """
    hot = np.array([90.0, 10, 10, 10])
    assert least_max_load(hot, np.ones(4, int)) == 90
    assert least_max_load(hot, np.array([2, 1, 1, 1])) == 45
    assert least_max_load(hot, np.array([2, 2, 1, 1])) == 30
    assert least_max_load(np.full(8, 5.0), np.full(4, 2)) == 10


# ---- placements that do not look at the load


def test_contiguous_puts_neighbouring_slots_on_one_gpu():
    p = contiguous(8, 8, 4)
    assert p.gpu_of.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert p.expert_of.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    p = contiguous(4, [3, 1, 2], 3)
    assert (p.gpu_of.tolist(), p.expert_of.tolist()) == ([0, 0, 0, 1, 2, 2], [0, 1, 2, 3, 0, 1])


def test_round_robin_puts_neighbouring_slots_on_neighbouring_gpus():
    p = round_robin(8, 8, 4)
    assert p.gpu_of.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert p.expert_of.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    p = round_robin(4, [3, 1, 2], 3)           # a full GPU is passed over
    assert (p.gpu_of.tolist(), p.expert_of.tolist()) == ([0, 1, 2, 0, 2, 0], [0, 1, 2, 3, 0, 1])


def test_slots_beyond_the_experts_hold_the_first_experts_again():
    assert contiguous(3, 4, 2).expert_of.tolist() == [0, 1, 2, 0]
    assert round_robin(3, 4, 2).expert_of.tolist() == [0, 1, 2, 0]


def test_random_is_a_permutation_that_the_seed_decides():
    one, two = (place("random", 64, 64, 8, seed=seed).expert_of for seed in (1, 2))
    assert sorted(one.tolist()) == sorted(two.tolist()) == list(range(64))
    assert (one != two).any()


# ---- which replica


def four_slots(replica):
    """Expert 0 on GPUs 0 and 2, expert 1 on GPUs 1 and 3; nodes are GPUs 0-1 and 2-3."""
    return Placement(gpu_of=np.arange(4), expert_of=np.array([0, 1, 0, 1]), replica=replica)


def test_token_hash_sends_all_choices_of_a_token_to_the_replica_of_the_same_number():
    asked = np.array([[0, 1], [0, 1]])
    slots = replicas.token_hash(asked, np.array([0, 1]), np.zeros(2, int), four_slots("token_hash"), TWO_NODES_OF_TWO)
    assert slots.tolist() == [[0, 1], [2, 3]]       # two replicas: the parity of the token's index decides


def test_token_hash_handles_experts_with_different_numbers_of_replicas():
    p = Placement(gpu_of=np.arange(4), expert_of=np.array([0, 1, 0, 0]))
    slots = replicas.token_hash(np.array([[0, 1]] * 5), np.arange(5), np.zeros(5, int), p, TWO_NODES_OF_TWO)
    # with three replicas the hash of tokens 0..4 is 0, 0, 2, 2, 1; slots 0, 2, 3 hold expert 0
    assert slots.tolist() == [[0, 1], [0, 1], [3, 1], [3, 1], [2, 1]]


def test_nearest_prefers_the_own_gpu_then_the_own_node_then_any():
    asked = np.array([[0, 1]] * 4)
    index = np.ones(4, int)     # alone, the hash would send all of them to the second replica
    slots = replicas.nearest(asked, index, np.arange(4), four_slots("nearest"), TWO_NODES_OF_TWO)
    assert slots.tolist() == [[0, 1], [0, 1], [2, 3], [2, 3]]

    both_on_the_node = Placement(gpu_of=np.array([0, 1]), expert_of=np.array([0, 0]))
    slots = replicas.nearest(np.zeros((2, 1), int), np.array([1, 0]), np.arange(2), both_on_the_node, TWO_NODES_OF_TWO)
    assert slots.tolist() == [[0], [1]]             # the own GPU, not what the hash says

    far_away = Placement(gpu_of=np.array([2, 3]), expert_of=np.array([0, 0]))
    slots = replicas.nearest(np.zeros((2, 1), int), np.array([0, 1]), np.zeros(2, int), far_away, TWO_NODES_OF_TWO)
    assert slots.tolist() == [[0], [1]]


def test_nearest_lets_the_hash_decide_among_replicas_of_the_own_node():
    p = Placement(gpu_of=np.array([3, 0, 1]), expert_of=np.array([0, 0, 0]))
    node_of = np.array([0, 0, 0, 1])
    slots = replicas.nearest(np.zeros((4, 1), int), np.arange(4), np.full(4, 2), p, node_of)
    assert slots.ravel().tolist() == [1, 2, 1, 2]


@pytest.mark.parametrize("rule", replicas.__all__)
def test_no_expert_goes_nowhere(rule):
    slots = getattr(replicas, rule)(
        np.array([[0, -1], [-1, -1]]), np.array([0, 1]), np.array([0, 3]), four_slots(rule), TWO_NODES_OF_TWO
    )
    assert slots.tolist() == [[0, -1], [-1, -1]]


@pytest.mark.parametrize("rule", replicas.__all__)
@pytest.mark.parametrize(("asked", "missing"), [([[0, 2]], 2), ([[1, 0]], 1)])
def test_an_expert_that_nobody_holds_is_an_error_that_names_it(rule, asked, missing):
    p = Placement(gpu_of=np.array([0, 1]), expert_of=np.array([0, 0 if missing == 2 else 2]))
    with pytest.raises(InputError, match=f"no slot holds expert {missing}"):
        getattr(replicas, rule)(np.array(asked), np.array([0]), np.array([0]), p, TWO_NODES_OF_TWO)


def test_dropped_choices_get_no_slot_and_the_placement_names_the_rule():
    routing = Routing(
        asked=np.array([[0, 1]]), assigned=np.array([[0, -1]]), weights=None,
        source=np.array([3]), index=np.array([0]), capacity=None,
    )
    cluster = SimpleNamespace(node_of=TWO_NODES_OF_TWO)
    assert replicas.chosen_slots(routing, four_slots("token_hash"), cluster).tolist() == [[0, -1]]
    assert replicas.chosen_slots(routing, four_slots("nearest"), cluster).tolist() == [[2, -1]]
    with pytest.raises(InputError, match=r"nearst.*did you mean nearest"):
        replicas.chosen_slots(routing, four_slots("nearst"), cluster)


def test_by_source_sends_all_tokens_of_a_gpu_to_one_replica_its_own_first():
    p = Placement(gpu_of=np.array([0, 2, 1]), expert_of=np.array([0, 0, 1]))
    slots = replicas.by_source(np.array([[0, 1]] * 8), np.arange(8), np.arange(8) % 4, p, TWO_NODES_OF_TWO)
    # GPUs 0 and 2 have expert 0 themselves; 1 and 3 take slots 0 and 1 in turn
    assert slots.tolist() == [[0, 2], [0, 2], [1, 2], [1, 2]] * 2


def test_by_source_lets_each_expert_begin_with_another_replica():
    """Neither GPU 2 nor GPU 3 has expert 0 or 1: the first takes replica 0 of expert 0 and replica 1 of expert 1."""
    p = Placement(gpu_of=np.array([0, 1, 0, 1]), expert_of=np.array([0, 0, 1, 1]))
    slots = replicas.by_source(np.array([[0, 1]] * 2), np.zeros(2, int), np.array([2, 3]), p, TWO_NODES_OF_TWO)
    assert slots.tolist() == [[0, 3], [1, 2]]


def test_lp_split_draws_for_each_gpu_anew():
    """400 GPUs with a token each, of an expert with two slots on two equal GPUs: 200 ± 4 standard deviations to each."""
    p = Placement(gpu_of=np.array([0, 1]), expert_of=np.array([0, 0]))
    slots = replicas.lp_split(np.zeros((400, 1), int), np.zeros(400, int), np.arange(400), p, np.zeros(400, int))
    assert abs(slots.sum() - 200) <= 4 * np.sqrt(400 / 4)


def test_least_load_evens_out_what_the_single_copies_leave_uneven():
    """GPU 0 has 4 choices of expert 1, that has one slot; expert 0 has slots on both, so its 4 choices go to GPU 1."""
    p = Placement(gpu_of=np.array([0, 1, 0]), expert_of=np.array([0, 0, 1]))
    slots = replicas.least_load(np.array([[0, 1]] * 4), np.arange(4), np.zeros(4, int), p, np.zeros(2, int))
    assert slots.tolist() == [[1, 2]] * 4


def test_lp_split_realises_the_shares_of_the_linear_program():
    """DeepSeek's example placement under the load of LPLB's vector: 220 on the busiest GPU with even shares, 218 at best."""
    expert_of = np.array([5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1])
    load = np.array([90, 260, 40, 61, 104, 20, 39, 4, 73, 56, 183, 86])
    p = Placement(gpu_of=np.arange(16) // 2, expert_of=expert_of)
    even = np.bincount(p.gpu_of, (load / np.bincount(expert_of))[expert_of])
    assert even.tolist() == [49.0, 14.0, 125.0, 113.0, 147.5, 131.5, 220.0, 216.0]
    shares, most = replicas.split_evenly(load.astype(float), p, 8)
    assert most == pytest.approx(218.0)
    assert np.bincount(expert_of, shares).tolist() == pytest.approx(load.tolist())

    times = 50              # as many tokens of one choice each; the hash is equidistributed to about one in a sequence
    asked = np.repeat(np.arange(12), load * times)[:, None]
    tokens = asked.size
    index = np.concatenate([np.arange(n) for n in load * times])
    slots = replicas.lp_split(asked, index, np.zeros(tokens, int), p, np.zeros(8, int)).ravel()
    got = np.bincount(p.gpu_of[slots], minlength=8)
    assert got.max() <= 218 * times * 1.01
