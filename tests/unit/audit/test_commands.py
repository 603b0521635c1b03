"""``fedge audit`` as its user meets it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner, Result

from audit.commands import app
from protocol.errors import ArtefactError, ProofError
from protocol.transparency.leaf_codec import decode_leaf, verify_author
from protocol.transparency.leaves import Audit

ROOT = Path(__file__).resolve().parents[3]
Copied = Callable[[], Path]


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def changed(path: Path, at: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_verify_says_ok_with_what_is_assumed(lossy_run: Path) -> None:
    result = run("verify", lossy_run, "--strict")
    assert result.exit_code == 0
    assert "verdict: ok" in result.stdout
    assert "assumed: the log's key came from the run itself" in result.stdout
    pinned = run("verify", lossy_run, "--log-key", (lossy_run / "log" / "key").read_text().strip())
    assert "came from the run itself" not in pinned.stdout


def test_a_fault_is_named_with_its_round_and_the_exit_code_is_eleven(copied: Copied) -> None:
    folder = copied()
    changed(folder / "rounds" / "0002" / "checkpoint.safetensors", -1)
    result = run("verify", folder, "--json")
    assert result.exit_code == 11
    report = json.loads(result.stdout)
    assert report["verdict"] == "failed"
    assert [one["verdict"] for one in report["rounds"]] == ["ok", "ok", "failed"]
    assert "checkpoint.safetensors is not the file" in report["rounds"][2]["faults"][0]
    assert "! round 2: " in run("verify", folder).stdout


def test_what_is_left_unproven_fails_only_when_strict(copied: Copied) -> None:
    folder = copied()
    shutil.rmtree(folder / "rounds" / "0001" / "vectors")
    smaller = ("verify", folder, "--without-vectors")
    assert run("verify", folder).exit_code == 11
    assert run(*smaller).exit_code == 0
    assert "? round 1: " in run(*smaller).stdout
    assert run(*smaller, "--strict").exit_code == 11
    assert run("verify", folder, "--strict", "--round", "2").exit_code == 0


def test_another_key_or_another_logs_policy_is_refused(lossy_run: Path, tmp_path: Path) -> None:
    from protocol.transparency.note import KeyType, VerifierKey
    from protocol.transparency.policy import simple_policy

    key = (lossy_run / "log" / "key").read_text().strip()
    other = VerifierKey(name=key.partition("+")[0], type=KeyType.ED25519, public=bytes(range(32)))
    with pytest.raises(ProofError, match="not the pinned key"):
        run("verify", lossy_run, "--log-key", other.encode())
    policy = tmp_path / "policy"
    policy.write_text(simple_policy(other, (), 0).render())
    with pytest.raises(ProofError):
        run("verify", lossy_run, "--policy", policy)
    assert run("verify", lossy_run, "--policy", lossy_run / "log" / "policy").exit_code == 0


def test_a_log_has_to_grow_from_what_was_seen(
    lossy_run: Path, copied: Copied, tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    assert run("verify", lossy_run, "--keep", kept).exit_code == 0
    assert kept.read_text() == (lossy_run / "log" / "checkpoint").read_text()
    assert run("verify", lossy_run, "--keep", kept).exit_code == 0
    kept.write_text("another log's\n\n— x AAAAAAAA\n")
    with pytest.raises(ProofError):
        run("verify", lossy_run, "--keep", kept)
    with pytest.raises(ProofError, match="no round 7"):
        run("verify", copied(), "--round", "7")


def test_show_lists_rounds_and_leaves(lossy_run: Path) -> None:
    rows = json.loads(run("show", lossy_run, "--json").stdout)
    assert [row["clients"] for row in rows] == [0, 6, 7]
    leaves = json.loads(run("show", lossy_run, "--leaves", "--json").stdout)
    assert [leaf["kind"] for leaf in leaves[:3]] == ["plan", "roster", "adapter"]
    assert "log key: fedge/small/" in run("show", lossy_run).stdout
    assert len(run("show", lossy_run, "--leaves").stdout.splitlines()) == len(leaves)


def test_lineage_leads_from_the_base_to_the_adapter(lossy_run: Path, tmp_path: Path) -> None:
    adapter = lossy_run / "rounds" / "0002" / "adapter"
    found = json.loads(run("lineage", adapter, "--json").stdout)
    assert [step["round"] for step in found["steps"]] == [0, 1, 2]
    assert found["release"] is None
    text = run("lineage", adapter).stdout
    for part in (found["base"], found["plan"], found["published"], "round 2"):
        assert part in text
    elsewhere = Path(shutil.copytree(adapter, tmp_path / "elsewhere"))
    with pytest.raises(ArtefactError, match="in no run's folder"):
        run("lineage", elsewhere)
    assert run("lineage", elsewhere, "--run", lossy_run).exit_code == 0
    config = elsewhere / "adapter_config.json"
    text = config.read_text()
    config.write_text(text.replace('"lora_alpha": 4.0', '"lora_alpha": 400.0'))
    assert config.read_text() != text
    with pytest.raises(ProofError, match=r"adapter_config\.json is not"):
        run("lineage", elsewhere, "--run", lossy_run)
    config.write_text(text)
    changed(elsewhere / "adapter_model.safetensors", -1)
    with pytest.raises(ProofError, match="not the file that the log knows"):
        run("lineage", elsewhere, "--run", lossy_run)


def test_a_bundle_holds_what_is_published_and_nothing_else(lossy_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    first = json.loads(run("export", lossy_run, "--out", out, "--json").stdout)
    assert first["files"] == first["written"] > 40
    assert first["missing"] == []
    assert not list(out.rglob("record.json"))
    assert not list(out.rglob("*.key"))
    assert not (out / "sequence.json").exists()
    assert run("verify", out, "--strict").exit_code == 0
    again = json.loads(run("export", lossy_run, "--out", out, "--json").stdout)
    assert again["written"] == 0
    changed(out / "plan.json")
    assert json.loads(run("export", lossy_run, "--out", out, "--json").stdout)["written"] == 1
    small = tmp_path / "small"
    run("export", lossy_run, "--out", small, "--without-vectors")
    assert not list(small.glob("rounds/*/vectors"))
    assert "verdict: unverifiable" in run("verify", small, "--without-vectors").stdout
    assert "verdict: failed" in run("verify", small).stdout


def test_nothing_false_gets_into_a_bundle(copied: Copied, tmp_path: Path) -> None:
    folder = copied()
    changed(folder / "rounds" / "0001" / "sums" / "0.sum")
    with pytest.raises(ArtefactError, match=r"sums/0\.sum is not the file of the log"):
        run("export", folder, "--out", tmp_path / "bundle")


def test_a_verdict_is_signed_by_the_auditor(copied: Copied, tmp_path: Path) -> None:
    folder, identity = copied(), tmp_path / "auditor.key"
    key = Ed25519PrivateKey.generate()
    identity.write_text(key.private_bytes_raw().hex() + "\n")
    assert run("attest", folder, "--identity", identity).exit_code == 0
    (written,) = (folder / "log" / "inbox").iterdir()
    read = decode_leaf(written.read_bytes())
    verify_author(read, bytes(32))
    assert isinstance(read.leaf, Audit)
    assert (read.leaf.verdict, read.leaf.rounds) == ("ok", {"0": "ok", "1": "ok", "2": "ok"})
    changed(folder / "rounds" / "0001" / "sums" / "0.sum")
    out = tmp_path / "failed.json"
    assert run("attest", folder, "--identity", identity, "--out", out).exit_code == 11
    failed = decode_leaf(out.read_bytes()).leaf
    assert isinstance(failed, Audit)
    assert (failed.verdict, failed.rounds["1"]) == ("failed", "failed")
    identity.write_text("secret")
    with pytest.raises(ArtefactError) as error:
        run("attest", folder, "--identity", identity)
    assert "secret" not in str(error.value)


@pytest.fixture
def address(lossy_run: Path) -> Iterator[str]:
    """``lossy_run`` behind a real web server on this machine."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(lossy_run)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def test_a_run_is_verified_and_exported_over_the_web(address: str, tmp_path: Path) -> None:
    assert "verdict: ok" in run("verify", address).stdout
    done = json.loads(run("export", address, "--out", tmp_path / "bundle", "--json").stdout)
    assert done["missing"] == []
    assert run("verify", tmp_path / "bundle", "--strict").exit_code == 0
    with pytest.raises(ArtefactError, match="not there"):
        run("verify", f"{address}elsewhere/")
    with pytest.raises(ArtefactError, match="no inbox"):
        run("attest", address, "--identity", _identity(tmp_path))


def _identity(folder: Path) -> Path:
    path = folder / "key"
    path.write_text(Ed25519PrivateKey.generate().private_bytes_raw().hex())
    return path


def test_an_auditors_process_loads_no_other_role(lossy_run: Path) -> None:
    code = (
        "import sys\nfrom fedge.main import main\n"
        "try:\n    main(['audit', 'verify', sys.argv[1]])\n"
        "except SystemExit as stop:\n    assert stop.code == 0\n"
        "print('LOADED', *sorted({n.partition('.')[0] for n in sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(lossy_run)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(done.stdout.partition("LOADED")[2].split())
    assert "audit" in loaded
    assert loaded & {"torch", "flwr", "server", "client", "base_model", "simulations"} == set()
