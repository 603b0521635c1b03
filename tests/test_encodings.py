"""Text is read and written as UTF-8 by name: what a locale prefers is nobody's business."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from tests.test_imports import OURS, ROOT

AT = {"read_text": 0, "write_text": 1}  # the place of the encoding among the arguments


def unnamed(tree: ast.AST) -> Iterator[int]:
    """Lines of calls that read or write text without naming an encoding."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or "encoding" in {word.arg for word in node.keywords}:
            continue
        function = node.func
        name = getattr(function, "attr", None) or getattr(function, "id", "")
        owner = getattr(getattr(function, "value", None), "id", "")
        words = {word.arg for word in node.keywords}
        if name in AT:
            if len(node.args) <= AT[name]:
                yield node.lineno
        elif name in ("open", "fdopen") and (owner, name) != ("os", "open"):
            modes = [one.value for one in ast.walk(node) if isinstance(one, ast.Constant)]
            texts = [str(mode) for mode in modes if set(str(mode)) <= set("rwaxbt+")]
            plain = isinstance(function, ast.Name) or name == "fdopen"
            if (plain and not texts) or any(mode and "b" not in mode for mode in texts):
                yield node.lineno
        elif name in ("run", "Popen", "check_output") and words & {"text", "universal_newlines"}:
            yield node.lineno


def test_the_search_finds_what_it_is_for() -> None:
    bad = (
        "open(p)\nopen(p, 'w')\np.open('a')\np.read_text()\np.write_text(x)\n"
        "os.fdopen(f, 'w')\nsubprocess.run(c, text=True)\n"
    )
    good = (
        "open(p, 'rb')\np.open('w', encoding='utf-8')\np.read_text('utf-8')\n"
        "p.write_text(x, 'ascii')\nos.open(p, flags)\nos.fdopen(f, 'wb')\nBase.open(folder)\n"
    )
    assert sorted(unnamed(ast.parse(bad))) == [1, 2, 3, 4, 5, 6, 7]
    assert list(unnamed(ast.parse(good))) == []


def test_every_text_file_is_opened_with_its_encoding() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for package in OURS
        for path in sorted((ROOT / package).rglob("*.py"))
        for line in unnamed(ast.parse(path.read_text("utf-8")))
    ]
    assert found == []
