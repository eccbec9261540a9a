"""The output blocks of README.md and of docs: `python -m tests.readme` runs their commands and writes them anew.

With `--slow` those of docs/answers.md.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import tempfile
from pathlib import Path

from clustersim.cli import main

README = Path(__file__).parent.parent / "README.md"
VALIDATION = Path(__file__).parent.parent / "docs" / "validation.md"
ANSWERS = Path(__file__).parent.parent / "docs" / "answers.md"
BLOCK = re.compile(r"<!-- printed by: clustersim(?P<arguments>[^>\n]*) -->\n```\n(?P<text>.*?)```", re.DOTALL)
SLOW = re.compile(r"<!-- printed, slowly, by: clustersim(?P<arguments>[^>\n]*) -->\n```\n(?P<text>.*?)```", re.DOTALL)

ANSWER = re.compile(
    r"<!-- printed, slowly(?P<end>, from the summary on)?, by: clustersim(?P<arguments>[^>\n]*) -->\n```\n(?P<text>.*?)```",
    re.DOTALL,
)


def printed(arguments: str) -> str:
    """What `clustersim ARGUMENTS` prints in an empty folder."""
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()) as out:
        os.chdir(folder)
        try:
            assert main(arguments.split()) == 0
        finally:
            os.chdir(here)
    return "\n".join(line.rstrip() for line in out.getvalue().strip("\n").splitlines()) + "\n"


def refreshed(text: str) -> str:
    """The README with its blocks as they would be printed now."""
    return BLOCK.sub(
        lambda m: f"<!-- printed by: clustersim{m['arguments']} -->\n```\n{printed(m['arguments'])}```", text
    )


def answered(text: str) -> str:
    """The page of answers with its blocks as they would be printed now."""

    def block(found: re.Match[str]) -> str:
        told = printed(found["arguments"])
        told = told[told.index("\n run ") + 1 :] if found["end"] else told
        return f"{found[0].partition('```')[0]}```\n{told}```"

    return ANSWER.sub(block, text)


if __name__ == "__main__":
    os.environ["COLUMNS"] = "80"
    if "--slow" in sys.argv:
        ANSWERS.write_text(answered(ANSWERS.read_text(encoding="utf-8")), encoding="utf-8")
        sys.exit()
    for page in (README, VALIDATION):
        page.write_text(refreshed(page.read_text(encoding="utf-8")), encoding="utf-8")
