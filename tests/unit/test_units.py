"""Quantities: what they mean, what is refused and how it is said, and that what is printed can be read back."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustersim import units
from clustersim.types import InputError

SI = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
IEC = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


@pytest.mark.parametrize(
    ("text", "bytes_per_second"),
    [
        ("400Gb/s", 50e9), ("400 Gbps", 50e9), ("450 GB/s", 450e9), ("50GBps", 50e9), ("3.35 TB/s", 3.35e12),
        ("8 b/s", 1.0), ("1 GiB/s", 2.0**30), ("8Gib/s", 2.0**30), ("1e3 MB/s", 1e9), (" .5 kB/s ", 500.0),
    ],
)  # fmt: skip
def test_bits_and_bytes_per_second(text, bytes_per_second):
    assert units.parse_bandwidth(text, "nic.bandwidth") == bytes_per_second


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("3.7us", 3.7e-6), ("3.7 µs", 3.7e-6), ("3.7 μs", 3.7e-6), ("936.25 ns", 936.25e-9), ("2ms", 2e-3),
        ("1 s", 1.0), ("5 min", 300.0), ("2h", 7200.0), ("0", 0.0), (0, 0.0), (0.0, 0.0), ("0us", 0.0),
    ],
)  # fmt: skip
def test_seconds(text, seconds):
    assert units.parse_seconds(text, "nic.latency") == seconds


@pytest.mark.parametrize(
    ("text", "nbytes"), [("64 GiB", 64 * 2**30), ("80 GB", 80e9), ("1kB", 1000), ("1 KiB", 1024), ("7 B", 7), (0, 0)]
)
def test_bytes(text, nbytes):
    assert units.parse_bytes(text, "gpu.memory") == nbytes


@pytest.mark.parametrize(
    ("text", "flops"), [("989.4 TFLOP/s", 989.4e12), ("989.4TFLOPS", 989.4e12), ("5 PFLOP/s", 5e15), ("1 FLOP/s", 1)]
)
def test_flops(text, flops):
    assert units.parse_flops(text, "gpu.bf16") == flops


REFUSED = {
    units.parse_bandwidth: [
        50, 50e9, "50", "50 GB", "400 Gb", "400 gb/s", "50 KB/s", "-1 GB/s", "0 GB/s", 0, "fast", "", None, True, "1e999 GB/s",
        "nan GB/s", "inf GB/s", "50 GB/s/s", "5 0 GB/s", ["50 GB/s"], "1e-999 b/s", "1e400000000 B/s",
    ],
    units.parse_seconds: [1, 1e-6, "1", "1e-6", "-1us", "3.7 US", "3.7 Ms", "us", None, False, math.nan, "١us"],
    units.parse_bytes: [1, "80", "80 Gb", "80 KB", "-1 B", "80 GB/s", None],
    units.parse_flops: [989.4, 989.4e12, "989.4", "989.4 TFLOP", "989.4 TFLOPs", "0 TFLOP/s", None],
}  # fmt: skip


@pytest.mark.parametrize(("parse", "value"), [(parse, value) for parse, values in REFUSED.items() for value in values])
def test_what_is_unclear_is_refused_in_one_line_that_names_key_value_and_rule(parse, value):
    with pytest.raises(InputError) as refusal:
        parse(value, "nic.bandwidth")
    message = str(refusal.value)
    assert message.startswith(f"nic.bandwidth = {value!r}: ")
    assert "for example" in message
    assert "\n" not in message


@given(st.floats(1e-3, 1e6), st.sampled_from(sorted(SI | IEC)), st.sampled_from(["", " ", "  "]))
def test_what_is_written_with_a_unit_is_read_as_number_times_unit(number, prefix, space):
    scale = (SI | IEC)[prefix]
    assert units.parse_bytes(f"{number!r}{space}{prefix}B", "k") == pytest.approx(number * scale, rel=1e-15)
    assert units.parse_bandwidth(f"{number!r}{space}{prefix}B/s", "k") == pytest.approx(number * scale, rel=1e-15)
    assert units.parse_bandwidth(f"{number!r}{space}{prefix}b/s", "k") == pytest.approx(number * scale / 8, rel=1e-15)
    if prefix in SI:
        assert units.parse_flops(f"{number!r}{space}{prefix}FLOP/s", "k") == pytest.approx(number * scale, rel=1e-15)


@given(st.decimals("0.001", "9999", places=3))
def test_decimals_are_converted_without_a_second_rounding(number):
    """3.7us is the float 3.7e-6, not 3.7 * 1e-6."""
    assert units.parse_seconds(f"{number}us", "k") == float(f"{number}e-6")
    assert units.parse_bandwidth(f"{number} GB/s", "k") == float(f"{number}e9")


@given(st.floats(1e-9, 1e6))
def test_a_printed_time_reads_back_to_three_digits(seconds):
    assert units.parse_seconds(units.format_seconds(seconds), "k") == pytest.approx(seconds, rel=5.001e-3)


@given(st.floats(1, 1e18))
def test_printed_bytes_read_back_to_three_digits(nbytes):
    assert units.parse_bytes(units.format_bytes(nbytes), "k") == pytest.approx(nbytes, rel=5.001e-3)
    assert units.parse_bandwidth(units.format_bandwidth(nbytes), "k") == pytest.approx(nbytes, rel=5.001e-3)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"), (5e-9, "0.00500 us"), (936.25e-9, "0.936 us"), (3.7e-6, "3.70 us"), (999.7e-6, "1.00 ms"),
        (0.0123, "12.3 ms"), (1, "1.00 s"), (12345, "12300 s"), (-3.7e-6, "-3.70 us"), (math.nan, "n/a"), (math.inf, "inf s"),
    ],
)  # fmt: skip
def test_times_for_people(seconds, text):
    assert units.format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 B"), (512, "512 B"), (14336, "14.3 kB"), (999_600, "1.00 MB"), (44.04e6, "44.0 MB"), (5e21, "5000000 PB")],
)
def test_bytes_for_people(nbytes, text):
    assert units.format_bytes(nbytes) == text


def test_bandwidths_for_people_are_in_bytes():
    assert units.format_bandwidth(units.parse_bandwidth("400Gb/s", "k")) == "50.0 GB/s"
    assert units.format_bandwidth(math.nan) == "n/a"
