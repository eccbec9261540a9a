"""Without a folder to keep machine code in everything works, only slower, and that is said once."""

import ast
import importlib
import logging
import os
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest
from numba.core.dispatcher import Dispatcher
from numba.core.options import DefaultOptions

from clustersim import jit

ROOT = Path(jit.__file__).parents[1]


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


HELPERS = {
    "deepest": "from clustersim.jit import lean\n@lean\ndef one(n):\n    return n + {}\n",
    "middle": "from clustersim.jit import inlined\nfrom deepest import one\n@inlined\ndef two(n):\n    return 2 * one(n)\n",
    "top": "from clustersim.jit import njit\nfrom middle import two\n@njit\ndef most(n):\n    return two(n)\n",
}


def played(folder, number):
    """What `most(20)` says in a new process with this number in the deepest helper, and how often it came from the disk."""
    for name, text in HELPERS.items():
        (folder / f"{name}.py").write_text(text.format(number))
    script = "from top import most; print(most(20), sum(most.stats.cache_hits.values()))"
    # the path is the tests' own, numba's cache beside the files: __pycache__
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]), "PYTHONDONTWRITEBYTECODE": "1"}
    env.pop("NUMBA_CACHE_DIR", None)
    said = subprocess.run([sys.executable, "-c", script], env=env, cwd=folder, capture_output=True, text=True, check=True)
    return tuple(map(int, said.stdout.split()))


def test_machine_code_is_made_anew_when_a_helper_in_another_file_changes(tmp_path):
    """The file of `most` is the same all the time; what it calls is inlined or called two files away."""
    assert played(tmp_path, 1) == (42, 0)
    assert played(tmp_path, 1) == (42, 1), "kept"
    assert played(tmp_path, 2) == (44, 0), "made anew"


def test_a_numba_whose_index_is_unknown_compiles_in_every_process_and_says_so(monkeypatch, caplog):
    monkeypatch.setattr(jit, "_helper_files", lambda _: {"/no/such/file.py"})
    jit._say_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert jit.njit(lambda x: 2 * x)(21) == 42
    assert "out of date" in caplog.text


def test_numbers_that_are_compiled_in_come_from_files_whose_change_is_seen():
    """What a compiled function reads of another file is a function of it, or stands beside one that its module has imported."""
    seen = []
    for path in sorted(ROOT.glob("clustersim/**/*.py")):
        if "from clustersim.jit import" not in (text := path.read_text(encoding="utf-8")):
            continue
        module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
        compiled = [value.py_func for value in vars(module).values() if isinstance(value, Dispatcher)]
        own = [function for function in compiled if function.__module__ == module.__name__]
        if not own:
            continue
        looked_at = jit._helper_files(own[0])
        for statement in ast.parse(text).body:
            if isinstance(statement, ast.ImportFrom) and statement.module:
                home = importlib.import_module(statement.module)
                numbers = [name.name for name in statement.names if isinstance(getattr(home, name.name), int | float)]
                seen += numbers
                assert not numbers or home.__file__ in looked_at, f"{path.name} takes {numbers} from {statement.module}"
    assert "LIVE" in seen
