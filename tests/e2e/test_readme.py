"""The README says what the program prints, and its commands are the ones that CI runs."""

import re
from pathlib import Path

import pytest

from tests.readme import ANSWER, ANSWERS, BLOCK, README, SLOW, VALIDATION, answered, printed, refreshed

ROOT = Path(__file__).parent.parent.parent


def test_the_output_blocks_are_what_the_commands_print(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = README.read_text(encoding="utf-8")
    assert len(BLOCK.findall(text)) == 3
    assert refreshed(text) == text, "run python -m tests.readme and read what changed"


def test_the_page_of_validation_shows_what_the_command_prints(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = VALIDATION.read_text(encoding="utf-8")
    assert len(BLOCK.findall(text)) == 1
    assert refreshed(text) == text, "run python -m tests.readme and read what changed"


@pytest.mark.slow
def test_the_answers_are_what_the_commands_print(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = ANSWERS.read_text(encoding="utf-8")
    assert len(ANSWER.findall(text)) == 3
    assert answered(text) == text, "run python -m tests.readme --slow and read what changed"


def test_every_answer_is_printed_by_the_command_above_it():
    text = ANSWERS.read_text(encoding="utf-8")
    block = r"```\n(clustersim [^`]*)\n```\n\n<!-- printed, slowly(?:, from the summary on)?, by: (clustersim .*) -->"
    shown = re.findall(block, text)
    assert len(shown) == 3
    assert all(" ".join(command.replace("\\\n", " ").split()) == printed for command, printed in shown)


@pytest.mark.slow
def test_the_table_of_groups_left_out_is_what_the_command_prints():
    ((arguments, text),) = SLOW.findall(VALIDATION.read_text(encoding="utf-8"))
    assert printed(arguments) == text, "run clustersim validate --leave-out, read what changed and put it there"


def test_every_command_the_readme_shows_before_its_output_is_the_one_that_was_run():
    text = README.read_text(encoding="utf-8")
    shown = re.findall(r"```\n(clustersim .*)\n```\n\n<!-- printed by: (clustersim .*) -->", text)
    assert len(shown) == 2
    assert all(command == printed for command, printed in shown)


def test_ci_runs_the_readmes_test_command():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "README.md" in script
    assert "pytest" not in script, "the command stands in the README and nowhere else"


def test_files_that_the_readme_links_are_there():
    for target in re.findall(r"\]\(([^)#]+)\)", README.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (ROOT / target).exists(), target
