"""``fedge audit``: check a run from what it publishes, on any machine, without its coordinator."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from audit.witness_commands import witness
from protocol.errors import ArtefactError, ProofError, printable
from storage.regular import read_settings_text

if TYPE_CHECKING:
    from audit.log_copy import Trust
    from audit.published import Run
    from audit.report import Report
    from audit.verify import Progress
    from protocol.transparency.policy import Policy

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Check a run's log and sums, without seeing an update.",
)
Source = Annotated[str, typer.Argument(metavar="RUN|URL", help="a run's folder, or its address")]
LogKey = Annotated[str, typer.Option("--log-key", help="pin the log: the line of its log/key")]
PolicyFile = Annotated[
    Path | None, typer.Option("--policy", help="C2SP tlog-policy: the log's key and its witnesses")
]
Keep = Annotated[
    Path | None,
    typer.Option("--keep", help="the last checkpoint seen: the log must have grown from it"),
]
RoundNumber = Annotated[
    int | None, typer.Option("--round", help="this round's sums and files only")
]
Spot = Annotated[
    float,
    typer.Option("--spot", min=0.0, max=1.0, help="add up this share of every sum's blocks only"),
]
Before = Annotated[
    list[str] | None,
    typer.Option("--before", help="the run this one goes on from; again for the one before it"),
]
Workers = Annotated[int, typer.Option("--workers", min=1, max=64, help="threads that add up")]
Quiet = Annotated[bool, typer.Option("--quiet", help="no progress bar")]
Json = Annotated[bool, typer.Option("--json", help="machine-readable output")]


@app.command()
def verify(
    source: Source,
    round_number: RoundNumber = None,
    spot: Spot = 0.0,
    log_key: LogKey = "",
    policy: PolicyFile = None,
    keep: Keep = None,
    workers: Workers = 2,
    base: Annotated[
        Path | None,
        typer.Option("--base", help="a base folder of your own: the run's manifest must be its"),
    ] = None,
    before: Before = None,
    without_vectors: Annotated[
        bool, typer.Option("--without-vectors", help="this copy was made without masked vectors")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="exit 11 also when something is left unproven")
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Repeat every sum and step from the published files; say what holds and what is left unproven.

    Exit code 11: something is wrong. What cannot be checked, because vectors are deleted or updates
    went in clear, is said and is not an error without --strict. What the verdict does not cover at all,
    files and claims, is listed by name. A run that goes on from another is `ok` only beside it: --before.
    """
    from audit.render import print_report

    report = _audited(
        source,
        _trust(log_key, policy, keep),
        only=round_number,
        spot=spot,
        workers=workers,
        vectors=not without_vectors,
        base=base,
        before=before or [],
        quiet=quiet or as_json,
    )
    _keep(keep, report)
    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=1))
    else:
        print_report(report)
    _end(report, strict=strict)


@app.command()
def show(
    source: Source,
    leaves: Annotated[bool, typer.Option("--leaves", help="every leaf, one a line")] = False,
    log_key: LogKey = "",
    policy: PolicyFile = None,
    as_json: Json = False,
) -> None:
    """What the log says, round by round. Its tree and signatures are checked, its sums are not."""
    from audit.render import leaf_lines, print_rounds, round_rows

    run = _loaded(source, _trust(log_key, policy, None))
    if leaves:
        found = leaf_lines(run.copy.entries)
        typer.echo(json.dumps(found, indent=1) if as_json else "\n".join(map(_leaf_text, found)))
    elif as_json:
        typer.echo(json.dumps(round_rows(run), indent=1))
    else:
        print_rounds(run)


@app.command()
def lineage(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="ADAPTER|RUN...",
            help="a folder rounds/NNNN/adapter, or a copy of one; with --site runs",
        ),
    ],
    source: Annotated[
        str, typer.Option("--run", help="the run, where the folder is not in it")
    ] = "",
    site: Annotated[
        str, typer.Option("--site", help="what this site's updates are in: its name, or its id")
    ] = "",
    log_key: LogKey = "",
    policy: PolicyFile = None,
    as_json: Json = False,
) -> None:
    """Where an adapter comes from: base, plan, rounds, release. With --site: what a site's updates are in."""
    from audit.lineage import check_folder
    from audit.lineage import lineage as trace
    from audit.render import print_lineage

    trust = _trust(log_key, policy, None)
    if site:
        return _print_touched(sources, trust, site, as_json)
    if len(sources) > 1:
        raise ArtefactError(
            f"{len(sources)} folders, and no --site", "name one adapter, or a site and its runs"
        )
    adapter = sources[0]
    folder = Path(adapter).resolve()
    if not source and not (len(folder.parents) > 2 and (folder.parents[2] / "plan.json").is_file()):
        raise ArtefactError(f"{adapter} is in no run's folder", "name the run: --run")
    run = _loaded(source or str(folder.parents[2]), trust)
    found = trace(run, check_folder(run, folder))
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=1))
    else:
        print_lineage(found)


@app.command()
def export(
    source: Source,
    out: Annotated[Path, typer.Option("--out", help="folder of the bundle; may exist from before")],
    without_vectors: Annotated[
        bool, typer.Option("--without-vectors", help="much smaller; sums cannot be repeated")
    ] = False,
    log_key: LogKey = "",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Copy what the run publishes, and nothing else, for an auditor elsewhere."""
    from audit.export import export as copy

    run = _loaded(source, _trust(log_key, None, None))
    with _progress(quiet or as_json) as progress:
        done = copy(run, out, vectors=not without_vectors, progress=progress)
    if as_json:
        typer.echo(
            json.dumps(
                {"files": done.files, "written": done.written, "missing": list(done.missing)}
            )
        )
        return
    typer.echo(f"{out}: {done.files} files, {done.written} written")
    if done.missing:
        typer.echo(f"not there any more: {len(done.missing)} files, first {done.missing[0]}")


@app.command()
def attest(
    source: Source,
    identity: Annotated[
        Path, typer.Option("--identity", help="key file, from `fedge client identity`")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="file to write; default RUN/log/inbox")
    ] = None,
    log_key: LogKey = "",
    policy: PolicyFile = None,
    keep: Keep = None,
    workers: Workers = 2,
    before: Before = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Verify all of a run and sign the verdict: a leaf that its coordinator takes into the log."""
    from audit.attest import INBOX, attestation, read_identity, write_attestation

    key = read_identity(identity)
    if out is None and "://" in source:
        raise ArtefactError("a run elsewhere has no inbox here", "name a file: --out")
    trust = _trust(log_key, policy, keep)
    quiet = quiet or as_json
    report = _audited(source, trust, workers=workers, before=before or [], quiet=quiet)
    _keep(keep, report)
    data = attestation(report, key, tool=_tool())
    path = write_attestation(data, out or Path(source) / INBOX)
    if as_json:
        typer.echo(json.dumps({"verdict": report.verdict, "leaf": str(path)}))
    else:
        typer.echo(f"{report.verdict}: signed in {path}")
    _end(report, strict=False)


app.command()(witness)


# -- shared ---------------------------------------------------------------------------------------


def _audited(
    source: str,
    trust: Trust,
    *,
    quiet: bool,
    workers: int,
    only: int | None = None,
    spot: float = 0.0,
    vectors: bool = True,
    base: Path | None = None,
    before: Sequence[str] = (),
) -> Report:
    from audit.sources import open_source
    from audit.sums import Effort
    from audit.verify import audit

    effort = Effort(workers=workers, spot=spot, vectors=vectors)
    with _progress(quiet) as progress:
        return audit(
            open_source(source),
            trust,
            only=only,
            effort=effort,
            base=base,
            before=[open_source(each) for each in before],
            progress=progress,
        )


def _print_touched(sources: Sequence[str], trust: Trust, site: str, as_json: bool) -> None:
    """Of the first run what was given beforehand is pinned; the others have logs of their own."""
    from audit.log_copy import Trust
    from audit.touched import touched_by, touched_lines

    runs = [_loaded(sources[0], trust), *(_loaded(each, Trust()) for each in sources[1:])]
    told = touched_by(runs, site)
    if as_json:
        typer.echo(json.dumps([each.to_dict() for each in told], indent=1))
        return
    for each in told:
        typer.echo("\n".join(map(printable, touched_lines(each))))


def _loaded(source: str, trust: Trust) -> Run:
    from audit.sources import open_source
    from audit.verify import load_run

    return load_run(open_source(source), trust)


def _progress(quiet: bool) -> AbstractContextManager[Progress]:
    from audit.render import Bars

    return nullcontext(lambda what, done, total: None) if quiet else Bars()


def _trust(log_key: str, policy: Path | None, keep: Path | None) -> Trust:
    """What was given beforehand. Raises ArtefactError, ProofError."""
    from audit.log_copy import Trust
    from protocol.transparency.note import parse_key

    return Trust(
        key=parse_key(log_key) if log_key else None,
        policy=read_policy_file(policy) if policy else None,
        kept=_text(keep) if keep and keep.exists() else None,
    )


def _keep(path: Path | None, report: Report) -> None:
    """The log is at least what it was: from now on it has to have grown from this."""
    from audit.files import write_whole

    if path is not None:
        write_whole(path, report.note.encode())


def _tool() -> str:
    try:
        return f"fedge {importlib.metadata.version('fedge')}"
    except importlib.metadata.PackageNotFoundError:
        return "fedge"  # run from its sources


def _end(report: Report, *, strict: bool) -> None:
    if report.failed or (strict and report.open):
        raise typer.Exit(ProofError.exit_code)


def read_policy_file(path: Path) -> Policy:
    """The policy that an auditor trusts. Raises ArtefactError, ProofError."""
    from protocol.transparency.policy import parse_policy

    return parse_policy(_text(path))


def _text(path: Path) -> str:
    try:
        return read_settings_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise ArtefactError(
            f"{path} cannot be read ({type(error).__name__})", "check the path"
        ) from None


def _leaf_text(leaf: dict[str, Any]) -> str:
    about = " ".join(f"{name}={value}" for name, value in leaf.items() if name != "leaf")
    return f"{leaf['leaf']:6} {about}"
