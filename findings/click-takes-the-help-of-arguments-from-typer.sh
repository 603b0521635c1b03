#!/usr/bin/env bash
# One would guess that a help text which typer is given for an argument is shown by `--help`. With typer 0.20.1 and click
# 8.5.1, which typer's own requirements admit, it is not: arguments of click have had no help until 8.5, typer keeps
# one of its own on them, and the new click's constructor writes over it. Options keep theirs, and nothing is said.
# It matters here: flwr 1.41 asks for a typer below 0.21, so a fresh installation meets the newest click with it, and
# commands no longer say what their arguments are. fedge's constraints.txt has click 8.4.2, and a test asks for the words.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/observe.py" <<'END'
from typing import Annotated

import typer

app = typer.Typer(add_completion=False)


@app.command()
def show(
    file: Annotated[str, typer.Argument(help="words on the argument")],
    size: Annotated[int, typer.Option(help="words on the option")] = 1,
) -> None:
    print(file, size)


app()
END
for click in 8.4.2 8.5.1; do
    python3 -m venv "$folder/$click"
    "$folder/$click/bin/pip" install --quiet --disable-pip-version-check typer==0.20.1 "click==$click"
    echo "typer 0.20.1, click $click"
    "$folder/$click/bin/python" "$folder/observe.py" --help | tee "$folder/$click.txt"
done
grep -q "words on the argument" "$folder/8.4.2.txt"
grep -q "words on the option" "$folder/8.5.1.txt"
! grep -q "words on the argument" "$folder/8.5.1.txt"
