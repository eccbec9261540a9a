"""Without a folder to keep machine code in everything works, only slower, and that is said once."""

import logging

import numba
import pytest

from clustersim import jit


@pytest.fixture
def no_folder(monkeypatch):
    """numba's decorator as it behaves where neither __pycache__ nor the home can be written."""
    real = numba.njit

    def refusing(*arguments, cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function 'f': no locator available for file 'f.py'")
        return real(*arguments, **options)

    monkeypatch.setattr(numba, "njit", refusing)
    jit._say_once.cache_clear()


def test_functions_are_compiled_all_the_same_and_that_is_said_once(no_folder, caplog):
    with caplog.at_level(logging.WARNING):
        twice = jit.njit(lambda x: 2 * x)
        thrice = jit.njit(lambda x: 3 * x)
    assert (twice(21), thrice(14)) == (42, 42)
    (said,) = caplog.messages
    assert "NUMBA_CACHE_DIR" in said
