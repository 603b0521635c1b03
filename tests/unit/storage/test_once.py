"""Nobody but ``storage`` renames what it wrote, makes secret files, locks, flushes, or hashes files."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
HOUSES = [path.parent for path in ROOT.glob("*/__init__.py") if path.parent.name != "storage"]
CALLS = {
    *("os.replace", "os.rename", "os.link", "os.fsync"),
    *("shutil.move", "hashlib.file_digest", "tempfile.mkstemp", "tempfile.NamedTemporaryFile"),
}
MODULES = {"fcntl", "filelock"}
EXCEPTIONS = {
    "base_model/fetch.py: os.link": "a file of another base is shared, not written",
    "base_model/partial.py: os.fsync": "a download grows under its digest and goes on after a cut",
    "edge_runtime/adapter.py: tempfile.NamedTemporaryFile": "ONNX Runtime reads adapters by name only",
    "server/inbox.py: rename": "a stranger's file is put aside as it is",
    "server/replies.py: a new file": "a spare one, without a name of its own until an update is whole",
    "server/replies.py: os.replace": "an update in clear takes a file whose update is in the sum; none is flushed",
    "server/store.py: rename": "sums and vectors go from the open attempt into the round's folder",
    "operations/logs.py: rename": "the next part of a log; a lost line loses no state",
}


def offences(path: Path) -> Iterator[str]:
    where = path.relative_to(ROOT).as_posix()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
            yield from (f"{where}: {name}" for name in names if name in MODULES)
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        call = f"{ast.unparse(node.func)}"
        if call in CALLS:
            yield f"{where}: {call}"
        elif call == "os.open" and "O_CREAT" in ast.unparse(node):
            yield f"{where}: a new file"
        elif call == "hashlib.sha256" and "read_bytes" in ast.unparse(node):
            yield f"{where}: a file's digest"
        # A string's has two arguments, a date's has names.
        elif node.func.attr == "rename" or (
            node.func.attr == "replace" and len(node.args) == 1 and not node.keywords
        ):
            yield f"{where}: rename"


def test_files_are_made_locked_and_hashed_in_one_place() -> None:
    assert len(HOUSES) >= 8
    found = {each for house in HOUSES for path in house.rglob("*.py") for each in offences(path)}
    assert found == set(EXCEPTIONS)
