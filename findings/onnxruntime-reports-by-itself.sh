#!/usr/bin/env bash
# One would guess that an inference library opens no connection, the more so one that hospitals and banks choose
# because data stays where it is. The Linux wheel of onnxruntime 1.31.1 reports to its maker from the first session
# on: it writes a number for the device below ~/.cache/Microsoft and sends events to
# mobile.events.data.microsoft.com, through the proxy where one is set. Nothing is printed. ORT_DISABLE_TELEMETRY=1
# stops both, when it is set before the package is imported. Older wheels for Linux did not report.
# It matters here: a client or a device would say to a third party when and where it works. fedge sets the variable
# before it imports ONNX Runtime, unless the environment has a value for it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnxruntime==1.31.1 onnx==1.23.0 numpy==2.4.0
cat >"$folder/observe.py" <<'END'
"""Two runs of one tiny model, each in an empty home folder, beside a proxy that notes what it is asked."""
import os
import pathlib
import socket
import subprocess
import sys
import threading

MODEL = """
import time, numpy, onnx, onnxruntime
from onnx import helper
value = lambda name: helper.make_tensor_value_info(name, 1, [1])
graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "g", [value("x")], [value("y")])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
print("version", onnxruntime.__version__, "answer", session.run(None, {"x": numpy.ones(1, "float32")})[0])
time.sleep(20)
"""


def observe(home: pathlib.Path, **extra: str) -> tuple[set[str], list[str]]:
    """(addresses that the proxy was asked for, files in the home folder)."""
    asked: set[str] = set()
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            with near:
                asked.add(" ".join(near.recv(4096).decode("latin-1").split(" ")[:2]))
                near.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")

    threading.Thread(target=accept, daemon=True).start()
    home.mkdir()
    proxy = f"http://127.0.0.1:{listener.getsockname()[1]}"
    environment = {"HOME": str(home), "PATH": os.environ["PATH"], "https_proxy": proxy, "HTTPS_PROXY": proxy}
    subprocess.run([sys.executable, "-c", MODEL], env=environment | extra, check=True)
    listener.close()
    return asked, sorted(str(path.relative_to(home)) for path in home.rglob("*") if path.is_file())


home = pathlib.Path(sys.argv[1])
asked, files = observe(home / "as-it-comes")
print("as it comes: asked for", asked, "; files", files)
quiet, none = observe(home / "switched-off", ORT_DISABLE_TELEMETRY="1")
print("switched off: asked for", quiet, "; files", none)
reports = any("events.data.microsoft.com" in each for each in asked)
sys.exit(0 if reports and any("Microsoft" in name for name in files) and not quiet and not none else 1)
END
"$folder/venv/bin/python" "$folder/observe.py" "$folder"
