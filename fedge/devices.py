"""A whole consortium on one machine, by the commands of the guide: ``python -m fedge.devices``.

The same plan is run twice: in the in-process grid, and over a coordinator and its sites as processes of
their own, with TLS and node keys. Then the run is audited, its last round released, published and taken
by two devices over HTTP. Everything that was started is stopped at the end, also after a failure. The
run lies in the folder itself; ``in-process/``, ``coordinator/``, ``sites/`` and ``delivery/`` beside it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Annotated, Any

import typer

from fedge.operations.flower import ROOT
from fedge.operations.folders import free_port
from protocol.errors import ArtefactError, FedgeError, MachineError
from simulations.experiment import Experiment, experiment_path, load_experiment
from simulations.files import write_json
from simulations.prepare import PLAN, TEST
from simulations.progress import NoProgress
from simulations.run import simulate
from simulations.summary import Summary

SUMMARY, BANKING = "summary.json", "data/banking77"
NAME = "devices"  # under which the adapter is published
COMMAND_S, ANSWER_S = 1800.0, 60.0
GOLDEN = 8  # rows of a device's probe; of these, so many must be right:
LEAST = 6
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Where everything lies, and the plan's run in the in-process grid that real devices must equal."""

    out: Path
    reference: Summary
    clients: list[str]

    @property
    def simulated(self) -> Path:
        """The run of the in-process grid: its plan, data and base are used again."""
        return self.out / "in-process"

    @property
    def base(self) -> Path:
        """The base's folder."""
        return Path(self.reference.base)

    @property
    def coordinator(self) -> Path:
        """The coordinator's folder."""
        return self.out / "coordinator"

    def site(self, name: str) -> Path:
        """A site's folder."""
        return self.out / "sites" / name


def devices(experiment: Experiment, out: Path, *, floor: float, say: Say) -> dict[str, Any]:
    """Run the whole of it in the new folder ``out``; the content of its ``summary.json``.

    ``floor`` is the accuracy that a release must have. Raises the error of the first step that fails.
    """
    out = out.resolve()
    if out.is_dir() and any(out.iterdir()):
        raise ArtefactError(f"{out} is not empty", "remove it, or name another folder with --out")
    began = time.monotonic()
    say("the same plan in the in-process grid")
    simulated = out / "in-process"
    reference = simulate(experiment, simulated, resume=False, progress=NoProgress())
    names = sorted(path.stem for path in (simulated / "clients").glob("*.jsonl"))
    names = [name for name in names if "." not in name]
    stage = Stage(out=out, reference=reference, clients=names)
    run, seconds = _federate(stage, say)
    say("audit")
    audited = _fedge(
        "audit", "verify", out, "--policy", out / "log" / "policy", "--json", "--quiet"
    )
    say("release")
    _fedge("release", out, "--base", stage.base, "--rows", simulated / TEST)
    serving = _deliver(stage, floor, say)
    summary = {
        "rounds_finished": run["rounds"],
        "adapter_sha256": run["adapter"],
        "adapter_sha256_in_process": reference.adapter_digest,
        "audit_verified": audited["verdict"] == "ok",
        "devices_serving": len(serving),
        "devices": serving,
        "sites": len(names),
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


def _federate(stage: Stage, say: Say) -> tuple[dict[str, Any], float]:
    """The rounds over processes; what `fedge run` says, and the seconds that it took."""
    with ExitStack() as stack:
        say("a coordinator")
        ports = [str(free_port()) for _ in range(3)]
        _fedge(
            *("coordinator", "init", stage.coordinator, "--json", "--name", "devices"),
            *("--host", "127.0.0.1", "--address", "127.0.0.1", "--port", ports[0]),
            *("--private-port", ports[1], "--metrics-port", ports[2]),
        )
        stack.callback(_stop, "coordinator", stage.coordinator)
        _fedge("coordinator", "start", stage.coordinator)
        for name in stage.clients:
            say(f"site {name}")
            _enrol(stage, name)
            stack.callback(_stop, "client", stage.site(name))
            _fedge("client", "start", stage.site(name))
        _wait_until_online(stage)
        say("rounds")
        began = time.monotonic()
        done = _fedge(
            *("run", stage.simulated / PLAN, "--coordinator", stage.coordinator),
            *("--base", stage.base, "--out", stage.out, "--json"),
            show=True,
        )
        return done, time.monotonic() - began


def _enrol(stage: Stage, name: str) -> None:
    folder = stage.site(name)
    folder.parent.mkdir(exist_ok=True)
    _fedge(
        *("client", "enrol", folder, "--name", name, "--threads", "1", "--json"),
        *("--invitation", stage.coordinator / "invitation.json"),
        *("--data", stage.simulated / "clients" / f"{name}.jsonl"),
        *("--plan", stage.simulated / PLAN, "--base", stage.base),
    )
    _fedge("coordinator", "admit", stage.coordinator, folder / "request.json", "--json")


def _wait_until_online(stage: Stage) -> None:
    """All sites, each with the newest roster: with an older one it would refuse the others."""
    until = time.monotonic() + ANSWER_S * 3
    while time.monotonic() < until:
        status = _fedge("status", stage.coordinator, "--json")
        online = [site for site in status["sites"] if site["status"] == "online"]
        version = status["roster_version"]
        contacts = [stage.site(name) / "state" / "contact.json" for name in stage.clients]
        known = [json.loads(path.read_text()) for path in contacts if path.exists()]
        newest = [contact for contact in known if contact["roster_version"] == version]
        if len(online) == len(newest) == len(stage.clients):
            return
        time.sleep(1)
    raise MachineError("not every site came online", f"see the logs in {stage.out / 'sites'}")


def _deliver(stage: Stage, floor: float, say: Say) -> list[dict[str, Any]]:
    """Publish, promote, and let one device per channel take the release over HTTP and answer."""
    folder = stage.out / "delivery"
    repo, keys = folder / "repo", folder / "keys"
    say("publish")
    folder.mkdir()
    _fedge("deploy", "init", repo, "--keys", keys, "--json")
    published = _fedge(
        *("deploy", "publish", stage.out, "--repo", repo, "--keys", keys, "--json"),
        *("--base", stage.base, "--floor", str(floor), "--name", NAME),
    )
    release = str(published["release"])
    say("promote")
    _fedge("deploy", "promote", release, "--repo", repo, "--keys", keys, "--json")
    _write_probe(stage, folder / "probe.json")
    serving = []
    with _static(repo) as url, ExitStack() as stack:
        for channel in ("canary", "stable"):
            say(f"a device of the channel {channel}")
            file = _device(stage, folder, channel, url)
            _fedge("edge", "update", file, "--json")
            port = free_port()
            stack.enter_context(_running("edge", "serve", str(file), "--port", str(port)))
            answer = _classified(port, stage)
            label = str(answer["answers"][0]["label"])
            if answer["release"] != published["id"]:
                raise MachineError(f"{file.stem} answers with another release", "see its log")
            serving.append({"device": file.stem, "channel": channel, "label": label})
    return serving


def _device(stage: Stage, folder: Path, channel: str, url: str) -> Path:
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
    path.write_text("".join(f"{key} = {json.dumps(text)}\n" for key, text in settings.items()))
    return path


def _write_probe(stage: Stage, path: Path) -> None:
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


def _classified(port: int, stage: Stage) -> dict[str, Any]:
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


def _test_rows(stage: Stage) -> list[dict[str, str]]:
    lines = (stage.simulated / TEST).read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


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


def _command(*arguments: object) -> list[str]:
    return [sys.executable, "-P", "-m", "fedge", *map(str, arguments)]


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


@contextmanager
def _running(*arguments: str) -> Iterator[None]:
    process = subprocess.Popen(_command(*arguments), env=_environment())  # noqa: S603 - ours
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _fedge(*arguments: object, show: bool = False) -> Any:
    """One command of ours; its JSON, if it was asked for. Raises its error."""
    done = subprocess.run(  # noqa: S603 - ours
        _command(*arguments),
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=None if show else subprocess.PIPE,
        text=True,
        timeout=COMMAND_S,
    )
    if done.returncode:
        raise _failed(arguments, done.returncode, (done.stderr or done.stdout).strip())
    return json.loads(done.stdout) if "--json" in arguments else None


def _failed(arguments: tuple[object, ...], code: int, said: str) -> FedgeError:
    command = " ".join(map(str, arguments[:3]))
    error = FedgeError(f"`fedge {command} …` ended with {code}: {said[-500:]}", "see above")
    error.exit_code = code if 0 < code < 128 else 1
    return error


def _stop(kind: str, folder: Path) -> None:
    """Whatever happened: nothing that was started stays."""
    subprocess.run(  # noqa: S603 - ours
        _command(kind, "stop", folder), env=_environment(), capture_output=True, timeout=120
    )


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
