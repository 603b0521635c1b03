"""``fedge client``: a site's identity, and what its data has spent."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from protocol.errors import ArtefactError

app = typer.Typer(no_args_is_help=True, help="A site's identity, and what its data has spent.")
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
        file = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise ArtefactError(
            f"{out} exists already", "a key is not overwritten; name another file"
        ) from None
    except OSError as error:
        raise ArtefactError(
            f"{out} cannot be written: {error.strerror}", "choose another --out"
        ) from None
    with os.fdopen(file, "w", encoding="ascii") as stream:
        stream.write(key.private_bytes_raw().hex() + "\n")
        stream.flush()
        os.fsync(stream.fileno())
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
    from protocol.privacy.ledger import total

    if not file.is_file():
        raise ArtefactError(f"{file} is not there", "name a ledger file")
    entries = FileLedger(file).entries()
    names = sorted({name for entry in entries for name in entry.participants})
    spent = {name: epsilon(total(entries, name), delta=delta) for name in names}
    if as_json:
        typer.echo(json.dumps({"sums": len(entries), "delta": delta, "epsilon": spent}))
        return
    typer.echo(f"{len(entries)} sums; epsilon at delta {delta:g}, without any amplification:")
    for name, value in spent.items():
        typer.echo(f"  {name}: {value:.3f}")
