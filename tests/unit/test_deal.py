"""Which recorded tokens a GPU starts with."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clustersim.types import InputError, Trace
from clustersim.workload.deal import deal_sequences, sequence_numbers


def trace_of(seq, pos):
    n = len(seq)
    return Trace(
        expert_ids=np.zeros((n, 1, 1), np.int16), gate_weights=None, step=np.zeros(n, int), rank=np.zeros(n, int),
        seq=np.asarray(seq), pos=np.asarray(pos), phase=np.zeros(n, np.uint8), n_experts=1,
    )


def whole(*lengths):
    """Sequences of these lengths, one after another."""
    return trace_of(np.repeat(np.arange(len(lengths)), lengths), np.concatenate([np.arange(n) for n in lengths]))


def test_192_sequences_of_128_fill_64_gpus_with_384_tokens_each_using_every_token_once():
    deal = deal_sequences(whole(*[128] * 192), 64, 384)
    assert sorted(deal.rows) == list(range(192 * 128))
    assert (deal.distinct, deal.most_used, deal.reuse) == (192 * 128, 1, 1.0)
    sequences = deal.rows.reshape(64, 3, 128)[:, :, 0] // 128
    assert (sequences == np.arange(64)[:, None] + [0, 64, 128]).all()      # dealt in turn
    assert (deal.source == np.repeat(np.arange(64), 384)).all()
    assert (deal.index == np.tile(np.arange(384), 64)).all()
    assert (deal.context == np.tile(np.arange(1, 129), 192)).all()


def test_a_full_gpu_is_passed_over_and_the_last_sequence_is_cut():
    # Cards in order: sequence 0 (3 tokens) to GPU 0, 1 (1) to GPU 1, 2 (3) to GPU 0 (one fits), 3 (1) and 4 (9) to GPU 1.
    deal = deal_sequences(whole(3, 1, 3, 1, 9), 2, 4)
    assert deal.rows.tolist() == [0, 1, 2, 4, 3, 7, 8, 9]
    assert deal.context.tolist() == [1, 2, 3, 1, 1, 1, 1, 2]


def test_sequences_keep_the_order_of_their_positions_and_of_their_first_row():
    deal = deal_sequences(trace_of([7, 2, 7, 2, 7], [2, 1, 0, 0, 1]), 1, 5)
    assert deal.rows.tolist() == [2, 4, 0, 3, 1]


def test_when_all_are_dealt_they_are_dealt_again_but_to_other_gpus():
    deal = deal_sequences(whole(2, 2), 2, 4)        # in turn the second round would give each GPU what it had
    assert deal.rows.tolist() == [0, 1, 2, 3, 2, 3, 0, 1]
    assert (deal.distinct, deal.most_used, deal.reuse) == (4, 2, 2.0)


def test_every_gpu_may_have_the_whole_trace_but_no_more():
    deal = deal_sequences(whole(2, 3, 1), 4, 6)
    assert (np.sort(deal.rows.reshape(4, 6), axis=1) == np.arange(6)).all()
    with pytest.raises(InputError, match=r"workload\.tokens_per_gpu=7: the trace has 6 tokens"):
        deal_sequences(whole(2, 3, 1), 4, 7)


@pytest.mark.parametrize("tokens", [0, -3])
def test_less_than_one_token_per_gpu_is_refused(tokens):
    with pytest.raises(InputError, match=rf"workload\.tokens_per_gpu={tokens}: each GPU needs at least one token"):
        deal_sequences(whole(2), 1, tokens)


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=12),
    n_gpus=st.integers(1, 9),
    share=st.floats(0.01, 1.0),
    data=st.data(),
)
def test_every_gpu_gets_its_tokens_none_twice_and_nothing_is_repeated_before_all_is_dealt(lengths, n_gpus, share, data):
    trace = whole(*lengths)
    shuffled = data.draw(st.permutations(range(trace.n_tokens)))
    trace = trace_of(trace.seq[shuffled], trace.pos[shuffled])
    each = max(1, int(share * trace.n_tokens))
    deal = deal_sequences(trace, n_gpus, each)
    seq, pos = (a[deal.rows].reshape(n_gpus, each) for a in (trace.seq, trace.pos))
    assert all(len(set(row)) == each for row in deal.rows.reshape(n_gpus, each)), "no token twice on a GPU"
    assert (deal.context.reshape(n_gpus, each) == pos + 1).all(), "sequences start at their beginning and have no gaps"
    dealt = np.bincount(seq[pos == 0], minlength=len(lengths))
    assert dealt.max() <= 1 or dealt.min() >= 1, "a second time only when every sequence had its first"
    assert deal.most_used == np.bincount(deal.rows).max()
    assert deal.distinct == len(set(deal.rows.tolist()))


def test_a_sequence_goes_on_while_tokens_look_at_one_more_each():
    assert sequence_numbers(np.array([1, 2, 3, 1, 2, 1])).tolist() == [0, 0, 0, 1, 1, 2]
    assert sequence_numbers(np.array([65, 66, 65, 66])).tolist() == [0, 0, 1, 1], "a batch may begin in the middle of one"
    assert sequence_numbers(np.array([4096, 3000, 3000])).tolist() == [0, 1, 2], "decoding has a token of each"
    assert sequence_numbers(np.zeros(0, int)).size == 0
