"""Programs as folders: what is damaged is made anew, and nothing is left half."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from typer.testing import CliRunner

from base_model.programs.commands import app
from base_model.programs.document import PROGRAM, parse_program
from base_model.programs.folder import (
    Program,
    keep_program,
    open_program,
    program_for,
    write_program,
)
from base_model.verify import read_manifest
from protocol.errors import ArtefactError, MachineError
from protocol.plan import Plan
from protocol.recipe import Recipe
from storage.regular import sha256_of
from tests.unit.base_model.programs.trained_plan import TRAIN, forged, plan_for


def test_what_is_written_opens(
    tiny_base: Path, plan: Plan, program: Program, tmp_path: Path
) -> None:
    write_program(program, tmp_path / "p")
    assert (
        open_program(tmp_path / "p", Recipe(plan=plan, manifest=read_manifest(tiny_base)))
        == program
    )


def flipped(folder: Path) -> None:
    data = bytearray((folder / TRAIN).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / TRAIN).write_bytes(data)


def truncated_with_digest(folder: Path) -> None:
    """As whoever wrote half of it and then told the truth about it."""
    data = (folder / TRAIN).read_bytes()[:-100]
    (folder / TRAIN).write_bytes(data)
    said = json.loads((folder / PROGRAM).read_text())
    said["graphs"][TRAIN] |= {"sha256": sha256_of(folder / TRAIN), "bytes": len(data)}
    (folder / PROGRAM).write_text(json.dumps(said, indent=1, sort_keys=True) + "\n")


def edited(**changes: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        said = json.loads((folder / PROGRAM).read_text()) | changes
        (folder / PROGRAM).write_text(json.dumps(said, indent=1, sort_keys=True) + "\n")

    return damage


def other_tensor(folder: Path) -> None:
    text = (folder / PROGRAM).read_text()
    (folder / PROGRAM).write_text(text.replace("layer.1.attention", "layer.3.attention"))


def answer_alone(folder: Path) -> None:
    said = json.loads((folder / PROGRAM).read_text())
    del said["graphs"][TRAIN]
    (folder / PROGRAM).write_text(json.dumps(said, indent=1, sort_keys=True) + "\n")


def without_graph(folder: Path) -> None:
    (folder / TRAIN).unlink()


def with_a_link(folder: Path) -> None:
    (folder / TRAIN).unlink()
    (folder / TRAIN).mkdir()


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "a bit": (flipped, "sha256 is not"),
    "truncated": (truncated_with_digest, "cut off|not those listed"),
    "a graph missing": (without_graph, "No such file"),
    "a folder in its place": (with_a_link, "not a regular file"),
    "an unknown key": (edited(more=1), "more"),
    "another format": (edited(format=1), "format"),
    "another base": (edited(base="0" * 64), "base 000000000000"),
    "another scale": (edited(constants={"scaling": 3.0}), "another adapter"),
    "another method": (edited(method="prompt"), "another adapter"),
    "another task": (edited(task="causal-lm"), "another task"),
    "other operators": (edited(opset=20), "set of operators"),
    "nothing that trains": (answer_alone, f"has no {TRAIN}"),
    "another layout": (other_tensor, "layer.1.attention"),
    "no document": (lambda folder: (folder / PROGRAM).write_text("{"), "JSON|cut|line"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_folder_is_refused_and_a_client_makes_it_anew(
    tiny_base: Path,
    plan: Plan,
    program: Program,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    case: str,
) -> None:
    damage, cause = DAMAGE[case]
    manifest = read_manifest(tiny_base)
    assert program_for(tiny_base, Recipe(plan=plan, manifest=manifest), cache=tmp_path) == program
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    damage(folder)
    with pytest.raises(ArtefactError, match=cause):
        open_program(folder, Recipe(plan=plan, manifest=manifest))
    with caplog.at_level(logging.WARNING, logger="fedge.program"):
        assert (
            program_for(tiny_base, Recipe(plan=plan, manifest=manifest), cache=tmp_path) == program
        )
    assert "made anew" in caplog.text
    caplog.clear()
    assert open_program(folder, Recipe(plan=plan, manifest=manifest)) == program
    assert program_for(tiny_base, Recipe(plan=plan, manifest=manifest), cache=tmp_path) == program
    assert not caplog.text


def test_a_program_of_another_plan_does_not_fit(
    tiny_base: Path, plan: Plan, program: Program, tmp_path: Path
) -> None:
    write_program(program, tmp_path / "p")
    manifest = read_manifest(tiny_base)
    for other in (
        plan_for(manifest.fingerprint, targets=["query"]),
        plan_for(manifest.fingerprint, targets="all-linear"),
        plan_for(manifest.fingerprint, method="prompt"),
        plan_for(manifest.fingerprint, method="lora-sb"),
    ):
        with pytest.raises(ArtefactError):
            open_program(tmp_path / "p", Recipe(plan=other, manifest=manifest))
    wider = plan_for(manifest.fingerprint, rank=8, alpha=16.0)  # the rank is free
    assert open_program(tmp_path / "p", Recipe(plan=wider, manifest=manifest)) == program


def test_only_the_named_program_is_taken_and_nothing_is_left(
    tiny_base: Path, program: Program, tmp_path: Path
) -> None:
    manifest = read_manifest(tiny_base)
    named = plan_for(manifest.fingerprint, program=program.document.digest)
    assert (
        program_for(tiny_base, Recipe(plan=named, manifest=manifest), cache=tmp_path / "a")
        == program
    )
    other = plan_for(manifest.fingerprint, program="1" * 64)
    with pytest.raises(ArtefactError, match="the plan names 111111111111"):
        program_for(tiny_base, Recipe(plan=other, manifest=manifest), cache=tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_cache_that_cannot_be_written_is_no_failure(
    tiny_base: Path, plan: Plan, program: Program, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING, logger="fedge.program"):
        got = program_for(
            tiny_base,
            Recipe(plan=plan, manifest=read_manifest(tiny_base)),
            cache=tmp_path / "file" / "x",
        )
    assert got == program
    assert "not kept" in caplog.text


OBSTACLES: dict[str, Callable[[Path], object]] = {
    "a file": lambda path: path.write_text("x"),
    "a link": lambda path: path.symlink_to(path.parent.parent),
    "a folder of something else": lambda path: (path / "x").mkdir(parents=True),
    "what a killed process left": lambda path: (path.parent / ".x.1.tmp").mkdir(),
}


@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_whatever_lies_in_the_caches_way_is_replaced(
    tiny_base: Path, plan: Plan, program: Program, tmp_path: Path, obstacle: str
) -> None:
    cache, manifest = tmp_path / "outer" / "cache", read_manifest(tiny_base)
    program_for(tiny_base, Recipe(plan=plan, manifest=manifest), cache=cache)
    (kept,) = (path for path in cache.iterdir() if path.is_dir())
    shutil.rmtree(kept)
    OBSTACLES[obstacle](kept)
    assert program_for(tiny_base, Recipe(plan=plan, manifest=manifest), cache=cache) == program
    assert open_program(kept, Recipe(plan=plan, manifest=manifest)) == program
    assert {path.name for path in cache.iterdir()} == {kept.name, ".lock"}
    assert cache.parent.is_dir()


def test_what_another_user_may_have_written_is_made_anew(
    tiny_base: Path, plan: Plan, program: Program, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manifest, before = read_manifest(tiny_base), os.umask(0o002)
    try:
        program_for(tiny_base, Recipe(plan=plan, manifest=manifest), cache=tmp_path)
    finally:
        os.umask(before)
    (kept,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert {path.stat().st_mode & 0o077 for path in (kept, *kept.iterdir())} == {0}
    assert program_for(tiny_base, Recipe(plan=plan, manifest=manifest), cache=tmp_path) == program
    for path in (kept, kept / TRAIN):
        path.chmod(0o770)
        with caplog.at_level(logging.WARNING, logger="fedge.program"):
            assert (
                program_for(tiny_base, Recipe(plan=plan, manifest=manifest), cache=tmp_path)
                == program
            )
        assert "another user may have written it" in caplog.text
        caplog.clear()


def test_parts_of_ones_own_are_kept_beside_a_named_program(
    tiny_base: Path, program: Program, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manifest, head = read_manifest(tiny_base), [frozenset({"head"})]
    named = plan_for(manifest.fingerprint, program=program.document.digest)
    first = program_for(
        tiny_base, Recipe(plan=named, manifest=manifest), cache=tmp_path, parts=head
    )
    assert (
        program_for(tiny_base, Recipe(plan=named, manifest=manifest), cache=tmp_path, parts=head)
        == first
    )
    assert not caplog.text


def test_a_kept_program_replaces_what_was_there_whole(program: Program, tmp_path: Path) -> None:
    keep_program(program, tmp_path / "p")
    (tmp_path / "p" / "more").write_text("x")
    keep_program(program, tmp_path / "p")
    assert {path.name for path in (tmp_path / "p").iterdir()} == {PROGRAM, *program.graphs}
    assert parse_program((tmp_path / "p" / PROGRAM).read_bytes(), source="") == program.document


def test_the_commands(tiny_base: Path, plan: Plan, program: Program, tmp_path: Path) -> None:
    file, out, run = tmp_path / "plan.json", tmp_path / "p", CliRunner()
    file.write_text(plan.model_dump_json())
    options = ["--base", str(tiny_base), "--plan", str(file), "--json"]
    built = run.invoke(app, ["build", *options, "--out", str(out)])
    assert json.loads(built.stdout)["program"] == program.document.digest
    verified = run.invoke(app, ["verify", str(out), *options, "--rebuild"])
    assert json.loads(verified.stdout)["rebuilt"] is True

    def harmless(model: onnx.ModelProto) -> None:
        model.graph.doc_string = "other bytes, the same computation"

    write_program(forged(program, harmless), tmp_path / "other")
    assert run.invoke(app, ["verify", str(tmp_path / "other"), *options]).exit_code == 0
    odd = run.invoke(app, ["verify", str(tmp_path / "other"), *options, "--rebuild"])
    assert isinstance(odd.exception, ArtefactError)
    assert "not what this base gives" in str(odd.exception)
    file.write_text(
        plan_for(plan.base.fingerprint, program=program.document.digest).model_dump_json()
    )
    assert run.invoke(app, ["verify", str(out), *options]).exit_code == 0
    refused = run.invoke(app, ["verify", str(tmp_path / "other"), *options])
    assert "the plan names" in str(refused.exception)


def test_places_that_cannot_be_written_or_are_no_program_are_named(
    tiny_base: Path, plan: Plan, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "plan.json").write_text(plan.render())
    common = ["--base", str(tiny_base), "--plan", str(tmp_path / "plan.json")]
    build = CliRunner().invoke(app, ["build", *common, "--out", str(tmp_path / "file" / "p")])
    assert isinstance(build.exception, MachineError)
    assert "cannot be written" in build.exception.cause
    verify = CliRunner().invoke(app, ["verify", str(tmp_path / "none"), *common])
    assert isinstance(verify.exception, ArtefactError)
    assert "fedge program build" in verify.exception.remedy
