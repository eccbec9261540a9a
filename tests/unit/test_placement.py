"""Where a slot lives, what it holds, and which replica a token goes to. Small enough to check by hand."""

from types import SimpleNamespace

import numpy as np
import pytest

from clustersim import placement
from clustersim.placement import replicas
from clustersim.placement.static import default_slots
from clustersim.types import InputError, Placement, Routing

TWO_NODES_OF_TWO = np.array([0, 0, 1, 1])


def test_slots_default_to_the_next_multiple_of_the_gpus():
    assert default_slots(32, 64) == 64
    assert default_slots(256, 64) == 256
    assert default_slots(60, 8) == 64


def test_contiguous_puts_neighbouring_slots_on_one_gpu():
    p = placement.contiguous(8, 8, 4)
    assert p.gpu_of.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert p.expert_of.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]


def test_round_robin_puts_neighbouring_slots_on_neighbouring_gpus():
    p = placement.round_robin(8, 8, 4)
    assert p.gpu_of.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert p.expert_of.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]


def test_slots_beyond_the_experts_hold_the_first_experts_again():
    assert placement.contiguous(3, 4, 2).expert_of.tolist() == [0, 1, 2, 0]
    assert placement.round_robin(3, 4, 2).expert_of.tolist() == [0, 1, 2, 0]


@pytest.mark.parametrize("name", placement.__all__)
def test_too_few_slots_are_refused_with_the_key_the_value_and_what_would_do(name):
    with pytest.raises(InputError, match=r"placement\.slots=16: fewer slots than the 32 experts.*at least 32 on 8 GPUs"):
        getattr(placement, name)(32, 16, 8)


@pytest.mark.parametrize("name", placement.__all__)
def test_slots_that_the_gpus_cannot_share_are_refused_with_those_that_would_do(name):
    with pytest.raises(InputError, match=r"placement\.slots=44: the 8 GPUs cannot share them evenly; 40 or 48 would do"):
        getattr(placement, name)(32, 44, 8)
    with pytest.raises(InputError, match=r"placement\.slots=34: the 8 GPUs .*; 40 would do"):     # 32 would not hold 33 experts
        getattr(placement, name)(33, 34, 8)


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
