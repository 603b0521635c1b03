"""``fedge client``: a site's identity, what its data has spent, and its receipts."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from protocol.errors import ArtefactError, printable
from storage.whole import PRIVATE, write_whole

if TYPE_CHECKING:
    from client.receipts import Held

RunName = tuple[str, str]  # a run by its log's name and its `sid`, 32 bytes in hex

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="A site's identity, what its data has spent, its receipts.",
)
Json = Annotated[bool, typer.Option("--json", help="machine-readable output")]


@app.command()
def identity(
    name: Annotated[str, typer.Argument(help="the site's name in the roster")],
    out: Annotated[Path, typer.Option("--out", help="key file to write; must not exist yet")],
    as_json: Json = False,
) -> None:
    """Make this site's key. The file never leaves the site; the public key goes into the roster."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    try:
        write_whole(out, f"{key.private_bytes_raw().hex()}\n".encode(), mode=PRIVATE, new=True)
    except FileExistsError:
        raise ArtefactError(
            f"{out} exists already", "a key is not overwritten; name another file"
        ) from None
    except OSError as error:
        raise ArtefactError(
            f"{out} cannot be written: {error.strerror}", "choose another --out"
        ) from None
    public = key.public_key().public_bytes_raw().hex()
    if as_json:
        typer.echo(json.dumps({"name": name, "public_key": public, "identity": str(out)}))
    else:
        typer.echo(f"wrote {out}; for the roster: fedge roster add roster.json {name} {public}")


@app.command()
def ledger(
    file: Annotated[Path, typer.Argument(help="a client's ledger, or a run's privacy.jsonl")],
    delta: Annotated[float, typer.Option("--delta", min=0.0, max=0.1)] = 1e-6,
    as_json: Json = False,
) -> None:
    """What was spent, per participant, over everything in the ledger."""
    from client.ledger import FileLedger
    from protocol.privacy.accounting import epsilon
    from protocol.privacy.ledger import Tally

    if not file.is_file():
        raise ArtefactError(f"{file} is not there", "name a ledger file")
    entries = FileLedger(file).entries()
    tally = Tally(entries)
    spent = {name: epsilon(tally.spent(name), delta=delta) for name in sorted(tally.clients)}
    if as_json:
        typer.echo(json.dumps({"sums": len(entries), "delta": delta, "epsilon": spent}))
        return
    typer.echo(f"{len(entries)} sums; epsilon at delta {delta:g}, without any amplification:")
    for name, value in spent.items():
        typer.echo(f"  {name}: {value:.3f}")


@app.command()
def receipts(
    file: Annotated[Path, typer.Argument(help="a site's KEY.receipts.jsonl")],
    as_json: Json = False,
) -> None:
    """The coordinators' receipts for this site's vectors, and what their logs say became of each."""
    found = [(held, *_fate(held)) for held in _held(file)]
    if as_json:
        lines = [held.receipt.model_dump() | {"fate": fate, "leaf": at} for held, fate, at in found]
        typer.echo(json.dumps(lines))
        return
    for held, fate, at in found:
        one, where = held.receipt, "" if at is None else f", leaf {at}"
        line = f"{one.origin}: round {one.round}, attempt {one.seq}: {fate}{where}"
        typer.echo(printable(line))


@app.command()
def complain(
    file: Annotated[Path, typer.Argument(help="a site's KEY.receipts.jsonl")],
    identity: Annotated[Path, typer.Option("--identity", help="the site's key file")],
    seq: Annotated[int, typer.Option("--seq", help="the attempt, as `receipts` shows it")],
    about: Annotated[str, typer.Option("--about", help="what is wrong; it becomes public")],
    run: Annotated[
        str, typer.Option("--run", help="the log's name or sid, or a part of the name")
    ] = "",
    out: Annotated[Path | None, typer.Option("--out", help="file; printed without it")] = None,
) -> None:
    """Sign a complaint with the receipt in it: for the log's inbox, or for an auditor."""
    from client.settings import read_identity
    from protocol.secagg.primitives import client_id
    from protocol.transparency.leaf_codec import encode_message
    from protocol.transparency.submissions import sign_complaint

    held = _of_attempt(_held(file), seq, run, file)
    key = read_identity(identity)
    own = client_id(key.public_key().public_bytes_raw())
    if own.hex() != held.receipt.client:
        raise ArtefactError(f"{identity} is not the key of this receipt", "name the site's key")
    if not about.isprintable() or not 0 < len(about) <= 500:
        raise ArtefactError("--about is not one line of at most 500 characters", "shorten it")
    data = encode_message(sign_complaint(client=own, about=about, receipt=held.text, key=key))
    _hand_over(data, out, "for the coordinator's RUN/log/inbox, or for an auditor")


@app.command()
def withdraw(
    file: Annotated[Path, typer.Argument(help="a site's KEY.receipts.jsonl")],
    identity: Annotated[Path, typer.Option("--identity", help="the site's key file")],
    run: Annotated[
        str, typer.Option("--run", help="the log's name or sid, or a part of the name")
    ] = "",
    out: Annotated[Path | None, typer.Option("--out", help="file; printed without it")] = None,
) -> None:
    """Withdraw from a run: a request that its coordinator logs, signed. It cannot be taken back.

    What the site's updates are in is then in the log, and the site is not asked again; sums stay as they are.
    """
    from client.settings import read_identity
    from protocol.secagg.primitives import client_id
    from protocol.transparency.submissions import encode_request, sign_request

    key = read_identity(identity)
    own = client_id(key.public_key().public_bytes_raw()).hex()
    receipts = [held.receipt for held in _held(file) if held.receipt.client == own]
    runs = dict.fromkeys((receipt.origin, receipt.sid) for receipt in receipts)
    if not runs:
        raise ArtefactError(
            f"{file} has no receipt of {identity}: none of its updates is in a sum",
            "stop the site, and ask the operator to take it out of the roster",
        )
    origin, sid = _chosen(runs, run)
    data = encode_request(sign_request(origin=origin, sid=sid, key=key))
    _hand_over(data, out, f"for the coordinator of {origin}: `fedge log withdraw RUN FILE`")


def _hand_over(data: bytes, out: Path | None, purpose: str) -> None:
    """Print it, or write it. Raises ArtefactError."""
    if out is None:
        typer.echo(data.decode().rstrip("\n"))
        return
    try:
        write_whole(out, data)
    except OSError as error:
        raise ArtefactError(
            f"{out} cannot be written: {error.strerror}", "choose another --out"
        ) from None
    typer.echo(printable(f"wrote {out}: {purpose}"))


def _held(file: Path) -> list[Held]:
    from client.receipts import Receipts

    if not file.is_file():
        raise ArtefactError(f"{file} is not there", "name a site's KEY.receipts.jsonl")
    return Receipts(file).held()


def _fate(held: Held) -> tuple[str, int | None]:
    """(`logged`, `aborted` or `not shown yet`, the leaf)."""
    from protocol.transparency.leaf_codec import decode_leaf
    from protocol.transparency.leaves import Vector
    from protocol.transparency.offline import parse_offline_proof

    if held.proof is None:
        return "not shown yet", None
    proof = parse_offline_proof(held.proof)
    logged = isinstance(decode_leaf(proof.extra or b"").leaf, Vector)
    return ("logged" if logged else "aborted"), proof.index


def _of_attempt(held: list[Held], seq: int, run: str, file: Path) -> Held:
    """The receipt of an attempt, of the run that ``run`` names, else of any. Raises ArtefactError."""
    if run:
        chosen = _chosen(map(_run_of, held), run)
        held = [each for each in held if _run_of(each) == chosen]
    fitting = [each for each in held if each.receipt.seq == seq]
    if not fitting:
        of = f" of {printable(held[0].receipt.origin)}" if run else ""
        raise ArtefactError(
            f"{file} has no receipt of attempt {seq}{of}", "`fedge client receipts`"
        )
    _chosen(map(_run_of, fitting), "")  # of one run alone
    # A coordinator may use a number twice: what the log has not shown is what there is to complain of.
    return min(fitting, key=lambda each: each.proof is not None)


def _run_of(held: Held) -> RunName:
    return held.receipt.origin, held.receipt.sid


def _chosen(runs: Iterable[RunName], run: str) -> RunName:
    """The one of ``runs`` that is called ``run``; else the only one whose name has it as a part.

    A log's name is its coordinator's choice: one that has another's as a part must not be taken for it, and
    of two with the same name the `sid` decides. Raises ArtefactError, which lists them.
    """
    known = list(dict.fromkeys(runs))
    exact = [each for each in known if run in each]
    matching = exact or [each for each in known if run in each[0]]
    if len(matching) == 1:
        return matching[0]
    names = ", ".join(f"{printable(origin)} (sid {sid})" for origin, sid in matching or known)
    what = f"{len(matching)} runs fit: {names}" if matching else f"no run fits of {names}"
    raise ArtefactError(what, "name one of them in full, by its name or sid: --run")
