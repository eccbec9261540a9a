"""The GEMMs of a part hold its weights, and a tensor group shares them out."""

import pytest

from clustersim.matrices import gemms, split
from clustersim.parts import Attention, Dense, Latent, Mamba, Mamba2, Moe, Retention
from clustersim.types import InputError

HIDDEN = 64
PARTS = [
    Attention(heads=8, kv_heads=4, head_dim=16), Attention(heads=8, kv_heads=8, head_dim=16, gated=True),
    Latent(heads=8, q_rank=24, kv_rank=32, nope_dim=16, rope_dim=8, value_dim=12),
    Latent(heads=8, q_rank=None, kv_rank=32, nope_dim=16, rope_dim=8, value_dim=12),
    Retention(heads=8, key_dim=64, value_dim=128), Dense(size=256), Dense(size=256, matrices=2),
]  # fmt: skip


def weights(shapes):
    return sum(n * k for n, k in shapes)


@pytest.mark.parametrize("part", PARTS)
def test_gemms_hold_the_weights_of_a_part(part):
    assert weights(gemms(part, HIDDEN)) == weights(gemms(part, HIDDEN, absorbed=True)) == part.params(HIDDEN)


def test_gemms_of_a_state_space_hold_all_but_its_convolution_and_vectors():
    """Mamba: a convolution of 4 over 128 channels, 16 decays, a skip and a bias each; Mamba-2: over 128 + 2 x 16, 3 per head."""
    one, two = Mamba(inner=128, state=16, conv=4, dt_rank=4), Mamba2(inner=128, state=16, conv=4, heads=8)
    assert one.params(HIDDEN) - weights(gemms(one, HIDDEN)) == 128 * 4 + 128 * (16 + 2)
    assert two.params(HIDDEN) - weights(gemms(two, HIDDEN)) == 160 * 4 + 3 * 8


def test_gemms_of_experts_are_those_of_the_shared_ones():
    assert gemms(Moe(experts=4, top_k=1, size=32), HIDDEN) == ()
    assert gemms(Moe(experts=4, top_k=1, size=32, shared_size=16), HIDDEN) == ((32, HIDDEN), (HIDDEN, 16))


@pytest.mark.parametrize("part", [PARTS[0], PARTS[1], *PARTS[4:]])
def test_a_tensor_group_shares_heads_and_columns_out(part):
    assert 4 * split(part, 4).params(HIDDEN) == part.params(HIDDEN)


def test_keys_and_values_are_repeated_where_there_are_fewer_heads_than_gpus():
    part = split(Attention(heads=16, kv_heads=2, head_dim=8), 8)
    assert (part.heads, part.kv_heads) == (2, 1)


def test_latents_are_on_every_gpu():
    whole, part = PARTS[2], split(PARTS[2], 4)
    assert part.cached(100) == whole.cached(100)
    replicated = HIDDEN * 24 + HIDDEN * (32 + 8)
    assert 4 * (part.params(HIDDEN) - replicated) == whole.params(HIDDEN) - replicated


def test_what_does_not_divide_is_refused_with_the_nearest_that_does():
    with pytest.raises(InputError, match=r"^parallel\.tensor=3: does not divide heads = 8 of attention; nearest that does: 4$"):
        split(Attention(heads=8, kv_heads=4, head_dim=16), 3)
