"""A client on a Ray cluster that ends its process, or trains for long, as its configuration says."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train("mask")
def train(message: Message, context: Context) -> Message:
    """Of those that have a file ``been`` the first is lost; who has ``done`` trains a minute and makes that."""
    config = context.node_config
    if "been" in config and not (been := Path(str(config["been"]))).exists():
        been.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if "done" in config:
        time.sleep(60)
        Path(str(config["done"])).touch()
    return Message(RecordDict(), reply_to=message)
