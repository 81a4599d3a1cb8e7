"""Units: what is shown can be read back, and GB and GiB are never mixed."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit import units

SCALES = {"B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}


def test_the_binary_units_are_powers_of_two():
    assert (units.KIB, units.MIB, units.GIB) == (1024, 1024 * 1024, 1024 * 1024 * 1024)


@given(st.integers(-(2**50), 2**50))
def test_bytes_read_back_within_half_a_percent(count_bytes):
    number, unit = units.format_bytes(count_bytes).split()
    assert float(number) * SCALES[unit] == pytest.approx(count_bytes, rel=0.0051)


def test_bytes_carry_three_digits_and_unknown_is_a_dash():
    shown = [units.format_bytes(count) for count in (0, 1023, 1536, 13 * units.MIB, 141 * units.GIB, None)]
    assert shown == ["0 B", "1023 B", "1.50 KiB", "13.0 MiB", "141 GiB", "-"]


@given(st.floats(0.001, 0.999))
def test_less_than_a_second_is_shown_in_milliseconds(seconds):
    number, unit = units.format_seconds(seconds).split()
    assert unit == "ms" and float(number) == pytest.approx(seconds * 1000, abs=0.51)


@given(st.floats(60, 1e6))
def test_minutes_add_up(seconds):
    minutes, rest = map(int, re.fullmatch(r"(\d+) min (\d+) s", units.format_seconds(seconds)).groups())
    assert 0 <= rest < 60
    assert 60 * minutes + rest == pytest.approx(seconds, abs=0.51)


def test_shares_are_shown_in_percent_and_the_unknown_as_a_dash():
    assert [units.format_share(share) for share in (0, 0.255, 1.0, None)] == ["0%", "26%", "100%", "-"]
