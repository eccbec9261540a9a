"""Without a folder to keep machine code in everything works, only slower, and that is said once."""

import logging

import numba
import numpy as np
import pytest
from numba.core.options import DefaultOptions

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


def test_functions_that_count_no_references_may_change_arrays_and_not_make_them():
    def double(x):
        for i in range(x.size):
            x[i] *= 2

    values = np.arange(3.0)
    jit.lean(double)(values)
    assert values.tolist() == [0, 2, 4]
    with pytest.raises(numba.TypingError):
        jit.lean(lambda n: np.zeros(n))(3)


def test_a_numba_that_always_counts_references_will_do(monkeypatch):
    monkeypatch.delattr(DefaultOptions, "_nrt")
    assert jit.lean(lambda n: 2 * n)(21) == 42


def test_functions_are_compiled_all_the_same_and_that_is_said_once(no_folder, caplog):
    with caplog.at_level(logging.WARNING):
        twice = jit.njit(lambda x: 2 * x)
        thrice = jit.njit(lambda x: 3 * x)
    assert (twice(21), thrice(14)) == (42, 42)
    (said,) = caplog.messages
    assert "NUMBA_CACHE_DIR" in said
