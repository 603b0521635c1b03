"""The documents say what the code does: cited steps exist, links lead somewhere, commands exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fedge.main import main
from simulations.experiment import load_experiment

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = (
    "protocol",
    "base_model",
    "client",
    "server",
    "edge_runtime",
    "audit",
    "simulations",
    "fedge",
)
GROUPS = "plan|base|edge|deploy|coordinator|client|roster|audit|log"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def test_every_step_the_code_cites_is_in_the_protocol() -> None:
    known = set(re.findall(r"\*\*(P-\d+\.\d+)", (ROOT / "docs" / "protocol.md").read_text()))
    known |= set(re.findall(r"^## (P-\d+)", (ROOT / "docs" / "protocol.md").read_text(), re.M))
    cited = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for step in re.findall(r"\bP-\d+(?:\.\d+)?", path.read_text()):
                cited.setdefault(step, path.relative_to(ROOT))
    assert cited, "the code cites no step at all"
    assert {step: str(path) for step, path in cited.items() if step not in known} == {}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", document.read_text()):
        assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_the_guides_experiment_can_be_loaded(tmp_path: Path) -> None:
    guide = (ROOT / "docs" / "guide.md").read_text()
    blocks = re.findall(r"^```toml\n(.*?)^```", guide, re.S | re.M)
    experiments = [block for block in blocks if "[population]" in block]
    assert len(experiments) == 1
    file = tmp_path / "support.toml"
    file.write_text(experiments[0])
    experiment = load_experiment(file)
    assert experiment.plan_for(fingerprint="0" * 64, labels=["a", "b"]).rounds == 10


def test_every_command_in_the_documents_exists() -> None:
    commands = set()
    for document in DOCUMENTS:
        fences = re.findall(r"^```(\w*)\n(.*?)^```", document.read_text(), re.S | re.M)
        for block in (body for language, body in fences if language in ("", "sh", "console")):
            commands |= set(
                re.findall(
                    rf"^\s*\$? ?(?:\.venv/bin/)?fedge ((?:{GROUPS}) [a-z]+|[a-z]+)",
                    block,
                    re.M,
                )
            )
    assert commands, "the documents show no command"
    for command in sorted(commands):
        with pytest.raises(SystemExit) as ended:
            main([*command.split(), "--help"])
        assert ended.value.code == 0, f"fedge {command} --help"
