"""`headrace serve`: one more replica of a running system, in a process of its own."""

from __future__ import annotations

import logging
import os
import threading

import torch
from rich.console import Console

from infra.home import Home
from infra.logs import log_to_file
from infra.recipe import Recipe
from infra.serving import answering, check_port, one_more
from infra.signals import stopped_by_signals
from infra.threads import Threads
from streaming.errors import HeadraceError

logger = logging.getLogger(__name__)
_LOOK_S = 0.1


def serve(recipe: Recipe, home: Home, port: int, drain_s: float, console: Console) -> None:
    """Answers until it is asked to stop: then it says so for `drain_s` while it still answers, so
    that whoever sends requests can send them elsewhere, answers what it has, and goes.

    Raises:
        HeadraceError: it cannot start, or cannot go on.
    """
    check_port(recipe.serving.host, port)
    torch.set_num_threads(1)  # as in `headrace run`
    log_file = home.log_file(f"serve-{port}")
    if home.exists:
        log_to_file(log_file, recipe.logs)
        logger.info("the replica at port %d is process %d", port, os.getpid())
    threads, asked_to_stop = Threads(log_file), threading.Event()
    url = f"http://{recipe.serving.host}:{port}"
    with stopped_by_signals(asked_to_stop), one_more(recipe, home, threads, log_file) as serving:
        service = serving.service(serving.status)
        with answering(serving, service, port, threads), serving.announced("serve", port):
            console.print(f"Catching up; {url}/readyz says with what ...", highlight=False)
            said = False
            while not (asked_to_stop.wait(_LOOK_S) or threads.stopping.is_set()):
                if not said and serving.not_ready() is None:
                    said = True
                    console.print(f"[bold green]Answering[/] at {url}", highlight=False)
            serving.draining.set()
            if not threads.stopping.is_set():
                threads.stopping.wait(drain_s)
    logger.info("the replica has stopped: %s", threads.failure or "it was asked to")
    if threads.failure is not None:
        raise HeadraceError(threads.failure)
    console.print("Stopped.")
