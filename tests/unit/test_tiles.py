"""Tiles as DeepGEMM picks them: choices derived by hand, and what every choice must be."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustersim.engine.tiles import LAYOUTS, Tile, deepgemm_2025_02, deepgemm_2025_07

SMS = 132


@pytest.mark.parametrize(
    ("shape", "tile"),
    [
        # m = 64 has one row of tiles. 2112 / 16 = 132: one wave without a gap
        (("dense", 64, 2112, 1), Tile(64, 16, "", True)),
        # 4096 / 132 = 31.03: 32 columns are the fewest for one wave, and leave 4 SMs idle
        (("dense", 64, 4096, 1), Tile(64, 32, "", True)),
        (("dense", 64, 7168, 1), Tile(64, 56, "", True)),           # 7168 / 56 = 128 tiles; 48 make 150, two waves
        (("dense", 64, 24576, 1), Tile(64, 96, "", True)),          # two waves from 96 on: 256 of 264 places; 128 use 192
        (("dense", 65, 2112, 1), Tile(128, 16, "", True)),          # 65 rows: one row of larger tiles
        # 32 rows of tiles. 112: 19 columns of tiles, 608, 5 waves, the last with 80; 128: 544, 16; 120: 576, 48; 104: 6 waves
        (("dense", 4096, 2112, 1), Tile(128, 112, "", True)),       # 2112 is no multiple of 224: nothing is shared
        (("dense", 4096, 7168, 1), Tile(128, 128, "a", True)),      # 1792 tiles, 14 waves; 7168 = 28 pairs of tiles
        (("contiguous", 32768, 4096, 1), Tile(128, 128, "a", True)),
        (("masked", 1024, 7168, 1), Tile(128, 112, "a", True)),     # 8 x 64 = 512 tiles in 4 waves, the last with 116; 128: 52
        (("masked", 512, 7168, 2), Tile(128, 112, "", True)),       # the same 512 tiles; two groups share nothing
    ],
)
def test_the_first_release_on_132_sms(shape, tile):
    assert deepgemm_2025_02(*shape, SMS) == tile


@pytest.mark.parametrize(
    ("shape", "tile"),
    [
        # 256 columns: 32 tiles for each of 64 experts, 1024 of them, 8 waves; any narrower tile needs more
        (("masked", 1, 4096, 64), Tile(64, 256, "", False)),
        # one expert: 64 x 32 makes 128 tiles; 16 columns would make 256, two waves. Of equals the fewer columns
        (("masked", 8, 4096, 1), Tile(64, 32, "", False)),
        # 512 rows: 8 x 16 tiles of 64 x 256 fill 128 SMs, as do 4 x 32 of 128 x 128. Different in both: the wider
        (("masked", 512, 4096, 1), Tile(64, 256, "a", False)),
        # 1024 rows: 8 x 16 of 128 x 256 are one wave of 128. Masked groups share rows, whichever side is longer
        (("masked", 1024, 4096, 1), Tile(128, 256, "a", False)),
        # prefill: 256 rows of tiles; 16 columns of 256: 4096 tiles, 32 waves. The columns are longer and shared
        (("contiguous", 32768, 4096, 1), Tile(128, 256, "b", False)),
    ],
)
def test_the_second_release_on_132_sms(shape, tile):
    assert deepgemm_2025_07(*shape, SMS) == tile


def test_an_odd_number_of_sms_shares_nothing():
    assert deepgemm_2025_02("dense", 4096, 7168, 1, 131).shared == deepgemm_2025_07("dense", 4096, 7168, 1, 131).shared == ""


@pytest.mark.parametrize("rule", [deepgemm_2025_02, deepgemm_2025_07])
@given(
    layout=st.sampled_from(LAYOUTS), m=st.integers(1, 5000), n=st.integers(1, 9000), groups=st.integers(1, 64),
    sms=st.integers(1, 160),
)
def test_no_tile_on_offer_takes_fewer_waves(rule, layout, m, n, groups, sms):
    """Checked against every tile the rule ever gives, not against its own list of candidates."""

    def waves(rows, columns):
        return math.ceil(math.ceil(m / rows) * math.ceil(n / columns) * groups / sms)

    tile = rule(layout, m, n, groups, sms)
    small = rule is deepgemm_2025_02 and layout != "contiguous" and m <= 64
    largest = {deepgemm_2025_02: (64 if small else 128, 128), deepgemm_2025_07: (128, 256)}[rule]
    assert waves(tile.rows, tile.columns) <= waves(*largest)
    assert not (tile.rows > 128 and tile.columns > 128)
    assert tile.rows == 128 or layout != "contiguous"
