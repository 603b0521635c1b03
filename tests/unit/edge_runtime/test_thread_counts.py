"""How many threads a command may be told: not so many that the machine has none left for others."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from edge_runtime.commands import app as edge
from fedge.sites import app as sites
from protocol.section import MOST_THREADS

COMMANDS = {
    "infer": (edge, ["infer", "--base", "b", "text"]),
    "serve": (edge, ["serve", "--base", "b", "--adapter", "a"]),
    "generate": (edge, ["generate", "--base", "b", "text"]),
    "chat": (edge, ["chat", "--base", "b"]),
    "enrol": (sites, ["enrol", "folder", "--name", "n"]),
}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("count", [-1, MOST_THREADS + 1, 10**9])
def test_no_more_threads_than_a_machine_may_have(name: str, count: int) -> None:
    app, arguments = COMMANDS[name]
    result = CliRunner().invoke(app, [*arguments, "--threads", str(count)])
    assert result.exit_code == 2
    assert f"0<=x<={MOST_THREADS}" in result.output
