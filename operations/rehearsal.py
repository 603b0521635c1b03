"""A whole consortium on one machine, by the commands of the guide: ``python -m operations.rehearsal``.

The same plan is run twice: in the in-process grid, and over a coordinator and its sites as processes of
their own, with TLS and node keys. Then the run is audited, its last round released, published and taken
by two devices over HTTP. Everything that was started is stopped at the end, also after a failure. The
run lies in the folder itself; ``in-process/``, ``coordinator/``, ``sites/`` and ``delivery/`` beside it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from delivery.gate import read_plan
from operations.flower import ROOT
from operations.folders import free_port
from operations.loopback import Consortium, Say, command, environment, fedge, finish
from protocol.errors import ArtefactError, FedgeError, MachineError, PlanError
from simulations.experiment import Experiment, experiment_path, load_experiment
from simulations.files import write_json
from simulations.prepare import TEST
from simulations.progress import NoProgress
from simulations.run import simulate

SUMMARY, BANKING = "summary.json", "data/banking77"
NAME = "devices"  # under which the adapter is published
ANSWER_S = 60.0
GOLDEN = 8  # rows of a device's probe; of these, so many must be right:
LEAST = 6


def devices(experiment: Experiment, out: Path, *, floor: float, say: Say) -> dict[str, Any]:
    """Run the whole of it in the new folder ``out``; the content of its ``summary.json``.

    ``floor`` is the accuracy that a release must have. Raises the error of the first step that fails.
    """
    if not experiment.has_labels or experiment.has_pairs or not experiment.has_texts:
        raise PlanError(
            "the devices here are asked for labels of single texts, the experiment has others",
            "name an experiment with labels and without task.text_pair",
        )
    out = out.resolve()
    if out.is_dir() and any(out.iterdir()):
        raise ArtefactError(f"{out} is not empty", "remove it, or name another folder with --out")
    began = time.monotonic()
    say("the same plan in the in-process grid")
    torch.set_num_threads(1)  # as at the sites: another number of threads sums in another order
    simulated = out / "in-process"
    reference = simulate(experiment, simulated, resume=False, progress=NoProgress())
    stage = Consortium(out=out, simulated=simulated, base=Path(reference.base))
    with stage.running(say):
        say("rounds")
        started = time.monotonic()
        run = finish(stage.run_command(out, resume=False), show=True)
        seconds = time.monotonic() - started
    say("audit")
    audited = fedge("audit", "verify", out, "--policy", out / "log" / "policy", "--json", "--quiet")
    say("release")
    fedge("release", out, "--base", stage.base, "--rows", simulated / TEST)
    serving = _deliver(stage, floor, say)
    summary = {
        "rounds_finished": run["rounds"],
        "adapter_sha256": run["adapter"],
        "adapter_sha256_in_process": reference.adapter_digest,
        "audit_verified": audited["verdict"] == "ok",
        "devices_serving": len(serving),
        "devices": serving,
        "sites": len(stage.names),
        "accuracy": reference.accuracy_federated,
        "seconds_rounds": round(seconds, 1),
        "seconds": round(time.monotonic() - began, 1),
    }
    write_json(out / SUMMARY, summary)
    if run["adapter"] != reference.adapter_digest:
        raise MachineError(
            "the adapter of real devices is another than the in-process grid's",
            f"see {out / SUMMARY}; the run and its reference are beside it",
        )
    return summary


def _deliver(stage: Consortium, floor: float, say: Say) -> list[dict[str, Any]]:
    """Publish, promote, and let one device per channel take the release over HTTP and answer."""
    folder = stage.out / "delivery"
    repo, keys = folder / "repo", folder / "keys"
    say("publish")
    folder.mkdir()
    fedge("deploy", "init", repo, "--keys", keys, "--json")
    published = fedge(
        *("deploy", "publish", stage.out, "--repo", repo, "--keys", keys, "--json"),
        *("--base", stage.base, "--floor", str(floor), "--name", NAME),
    )
    release = str(published["release"])
    say("promote")
    fedge(
        *("deploy", "promote", release, "--repo", repo, "--keys", keys, "--json"),
        *("--run", stage.out),
    )
    _write_probe(stage, folder / "probe.json")
    serving = []
    with _static(repo) as url, ExitStack() as stack:
        for channel in ("canary", "stable"):
            say(f"a device of the channel {channel}")
            file = _device(stage, folder, channel, url)
            fedge("edge", "update", file, "--json")
            port = free_port()
            stack.enter_context(_running("edge", "serve", str(file), "--port", str(port)))
            answer = _classified(port, stage)
            label = str(answer["answers"][0]["label"])
            if answer["release"] != published["id"]:
                raise MachineError(f"{file.stem} answers with another release", "see its log")
            serving.append({"device": file.stem, "channel": channel, "label": label})
    return serving


def _device(stage: Consortium, folder: Path, channel: str, url: str) -> Path:
    """A device's settings; root and policy lie in its image, as copies."""
    image = folder / f"kiosk-{channel}"
    image.mkdir()
    (image / "root.json").write_bytes((folder / "repo" / "root.json").read_bytes())
    (image / "policy").write_bytes((stage.out / "log" / "policy").read_bytes())
    settings = {
        "id": image.name,
        "name": NAME,
        "channel": channel,
        "repository": url,
        "root": "root.json",
        "trust": "policy",
        "base": str(stage.base),
        "store": "store",
        "probe": "../probe.json",
        "report": "report.json",
    }
    path = image / f"{image.name}.toml"
    path.write_text(
        "".join(f"{key} = {json.dumps(text)}\n" for key, text in settings.items()), "utf-8"
    )
    return path


def _write_probe(stage: Consortium, path: Path) -> None:
    """Held-out rows that the released adapter gets right: what a device's owner would write down."""
    from edge_runtime.base import EdgeBase
    from edge_runtime.runtime import EdgeRuntime

    rounds = sorted((stage.out / "rounds").glob("[0-9]*/adapter"))
    runtime = EdgeRuntime(EdgeBase.open(stage.base))
    runtime.activate(rounds[-1])
    rows = _test_rows(stage)[:200]
    found = runtime.infer([row["text"] for row in rows])
    right = [row for row, answer in zip(rows, found, strict=True) if answer.label == row["label"]]
    golden = [{"text": row["text"], "label": row["label"]} for row in right[:GOLDEN]]
    least = min(LEAST, len(golden))
    probe = {"rows": golden, "least_correct": least, "most_latency_ms": 5000}
    write_json(path, probe | {"format": 1, "most_memory_mb": 1000})


def _classified(port: int, stage: Consortium) -> dict[str, Any]:
    """A device's answer to a held-out text, once it serves."""
    body = json.dumps({"texts": [_test_rows(stage)[0]["text"]]}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/classify", body, {"Content-Type": "application/json"}
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    until = time.monotonic() + ANSWER_S
    while True:
        try:
            with opener.open(request, timeout=10) as answer:
                said: dict[str, Any] = json.load(answer)
                return said
        except OSError as error:
            if time.monotonic() > until:
                raise MachineError(f"a device does not answer: {error}", "see its log") from None
            time.sleep(0.3)


def _test_rows(stage: Consortium) -> list[dict[str, str]]:
    task = read_plan(stage.simulated).task
    rows = task.rows(stage.simulated / TEST)
    return [
        {"text": str(text), "label": label}
        for text, label in zip(rows.texts, rows.targets, strict=True)
    ]


@contextmanager
def _static(folder: Path) -> Iterator[str]:
    """The repository as any static server has it."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def _running(*arguments: str) -> Iterator[None]:
    started = command(*arguments)  # what it says of itself is not part of our answer
    process = subprocess.Popen(started, env=environment(), stdout=subprocess.DEVNULL)  # noqa: S603 - ours
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _with_banking(experiment: str) -> list[str]:
    """Settings that take BANKING77 where it lies; the plan's shape stays."""
    shared = Path(os.environ.get("FEDGE_SHARED") or ROOT.parent / "shared")
    if experiment != "devices" or not (shared / BANKING / "train.jsonl").is_file():
        return []
    files = {"train": f"shared:{BANKING}/train.jsonl", "test": f"shared:{BANKING}/test.jsonl"}
    return ["data.generator=", *(f"data.{key}={path}" for key, path in files.items())]


def main(
    experiment: Annotated[str, typer.Argument(help="an experiment")] = "devices",
    out: Annotated[Path, typer.Option("--out")] = Path("runs/devices"),
    overrides: Annotated[list[str] | None, typer.Option("--set", help="a.b=value")] = None,
    floor: Annotated[float, typer.Option("--floor", min=0, max=1)] = 0.1,
) -> None:
    """Coordinator, sites, rounds, audit, release and devices on this machine."""
    began = time.monotonic()

    def say(text: str) -> None:
        typer.echo(f"{time.monotonic() - began:6.0f} s  {text}", err=True)

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started is stopped then too
    path = experiment_path(experiment)
    loaded = load_experiment(path, [*_with_banking(experiment), *(overrides or [])])
    try:
        summary = devices(loaded, out, floor=floor, say=say)
    except FedgeError as error:
        typer.echo(f"error: {error.cause}\nfix: {error.remedy}", err=True)
        raise typer.Exit(error.exit_code) from None
    typer.echo(json.dumps(summary, indent=1))


if __name__ == "__main__":
    typer.run(main)
