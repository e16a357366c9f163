"""What README and docs show can be used: Python compiles and names what exists, YAML loads, commands and options are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.main import get_command

import keystep
from keystep.cli import app
from keystep.run.procedure_file import from_file

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_names_what_exists(page):
    for block in blocks(page, "python"):
        compile(block, str(page), "exec")
        for name in re.findall(r"\bks\.(\w+)", block):
            assert hasattr(keystep, name), f"{page.name} uses ks.{name}"


def test_the_readme_procedure_runs():
    [block] = blocks(ROOT / "README.md", "python")
    made: dict[str, object] = {}
    exec(compile(block.split("\nrun = ")[0], "README.md", "exec"), made)
    procedure = made["Countdown"]()
    assert procedure.prompt(procedure.start()).startswith("What is 1000 minus 1?") and procedure.parse("999", 1000) == 999


def test_yaml_loads(tmp_path):
    found = [block for page in PAGES for block in blocks(page, "yaml")]
    assert found
    (tmp_path / "rows.csv").write_text("text\nhello\n")
    for block in found:
        (tmp_path / "p.yaml").write_text(block)
        procedure = from_file(tmp_path / "p.yaml", {})
        assert "hello" in procedure.prompt(procedure.start())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_exist(page):
    commands = get_command(app).commands
    for line in re.findall(r"keystep ([a-z][^`\n#|]*)", page.read_text("utf-8")):
        words = line.split()
        if words[0] not in commands:
            continue
        command, name = commands[words[0]], words[0]
        if hasattr(command, "commands"):  # a room's
            assert words[1] in command.commands, f"{page.name}: keystep {name} has no {words[1]}"
            command, name = command.commands[words[1]], f"{name} {words[1]}"
        known = {option for parameter in command.params for option in parameter.opts}
        for option in re.findall(r"(?<!\S)--[a-z-]+", line):
            assert option in known, f"{page.name}: keystep {name} has no {option}"
