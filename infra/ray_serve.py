"""The same replicas under Ray Serve: as many as the requests need, behind one address.

Serve's proxy sends every request to a replica that has room for it, starts replicas while the
queues are long and stops them when they have been short for a while, asks each whether it is
well, and replaces those that died. To restart, it starts the new replicas beside the old ones,
and these go when the new ones answer.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from pydantic import PositiveFloat, PositiveInt
from rich.console import Console

from infra.home import Home
from infra.logs import log_to_file
from infra.recipe import Recipe
from infra.serving import check_port, one_more
from infra.signals import stopped_by_signals
from infra.targets import MetricsConfig, Target, announced
from infra.threads import Threads
from streaming.errors import ConfigError, HeadraceError

import infra.workers  # noqa: F401  # isort: skip - it sets the environment of Ray
import ray  # isort: skip

try:
    with warnings.catch_warnings(action="ignore"):  # of its own settings, about Pydantic's future
        from ray import serve
except ModuleNotFoundError as error:
    raise HeadraceError(
        f"Ray Serve cannot be used, {error.name} is not installed: pip install 'headrace[cluster]'"
    ) from error

logger = logging.getLogger(__name__)
NAME = "headrace"
_LOOK_S = 0.1
_LOOPBACK = "127.0.0.1"
_STORE_BYTES = 80_000_000  # Ray's least


@dataclass(frozen=True)
class RayServeConfig:
    """`replicas` at least, `max_replicas` at most.

    There are to be `ongoing` requests at a replica, waiting or being answered; it is sent no more
    than `max_ongoing`, and beyond `max_queued` the proxy refuses with 503. A replica reserves
    `cpus` of the cluster.
    """

    replicas: PositiveInt = 2
    max_replicas: PositiveInt = 4
    ongoing: PositiveFloat = 4.0
    max_ongoing: PositiveInt = 32
    max_queued: PositiveInt = 1_000
    cpus: PositiveFloat = 1.0
    upscale_delay_s: PositiveFloat = 5.0
    downscale_delay_s: PositiveFloat = 300.0
    drain_s: PositiveFloat = 20.0

    def __post_init__(self) -> None:
        if self.max_replicas < self.replicas:
            raise ConfigError(
                f"max-replicas = {self.max_replicas} is less than replicas = {self.replicas}:"
                " give as many at least"
            )


class Answering:
    """A replica as Serve runs it. It is made when it can answer: no request finds it cold."""

    def __init__(self, recipe: Recipe, home: Home) -> None:
        import torch

        torch.set_num_threads(1)
        _stay_on_this_machine()
        name = serve.get_replica_context().replica_id.unique_id
        log_file = home.log_file(f"serve-{name}")
        log_to_file(log_file, recipe.logs)
        logger.info("the replica %s is process %d", name, os.getpid())
        self._threads = Threads(log_file)
        self._parts = ExitStack()
        self._serving = self._parts.enter_context(one_more(recipe, home, self._threads, log_file))
        if recipe.metrics.enabled:
            self._tell(recipe.metrics, home)
        said = None
        while reason := self._serving.not_ready():
            if reason != said:
                said = reason
                logger.info("not ready: %s", reason)
            if self._threads.stopping.wait(_LOOK_S):
                raise HeadraceError(self._threads.failure or "stopped before it was ready")

    def _tell(self, config: MetricsConfig, home: Home) -> None:
        """At a port of its own, for the proxy's leads to any of the replicas."""
        port = self._parts.enter_context(self._serving.metrics.process.served(config.host))
        target = Target("serve", 0, config.address(config.host, port))
        self._parts.enter_context(announced(home, target))

    def __serve_build_asgi_app__(self) -> Any:
        return self._serving.app(self._serving.service(self._serving.status))

    def check_health(self) -> None:
        """Serve asks now and then, and replaces what raises."""
        if self._threads.failure is not None:
            raise HeadraceError(self._threads.failure)

    def __del__(self) -> None:
        if hasattr(self, "_parts"):
            self._parts.close()


def _stay_on_this_machine() -> None:
    """Where Ray is for one machine only, the requests of its proxy are taken from there alone.

    A replica takes what the proxy sends it pickled, at a port that Serve opens to every network;
    there is no setting for that. It asks this function for the port after it has made the replica.
    """
    if ray.util.get_node_ip_address() != _LOOPBACK:
        return  # a cluster: its network must be closed to others, as Ray's own pages say
    from ray.serve._private import replica

    open_port = replica.add_port_to_grpc_server
    replica.add_port_to_grpc_server = lambda server, _: open_port(server, f"{_LOOPBACK}:0")


class RayServe:
    """An application of Serve, on the cluster of RAY_ADDRESS or else on this machine alone."""

    def __init__(self, recipe: Recipe, home: Home, port: int, config: RayServeConfig) -> None:
        self._recipe = recipe
        self._home = home
        self._port = port
        self._config = config

    @contextmanager
    def running(self) -> Iterator[None]:
        """The proxy listens inside the block; `deploy` makes the replicas."""
        if not self._home.exists:
            raise ConfigError(
                f"nothing has run in {self._home.path} yet: start with `headrace run`"
            )
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        try:
            ray.init(
                **_machine(self._config),
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
            serve.start(
                proxy_location="EveryNode",
                http_options={"host": self._recipe.serving.host, "port": self._port},
            )
        except (RuntimeError, OSError, ValueError, ray.exceptions.RayError) as error:
            raise HeadraceError(
                f"Ray Serve does not start ({error}): look for space in the temporary directory and"
                " in shared memory, or at RAY_ADDRESS, then start again"
            ) from error
        try:
            yield
        finally:
            serve.shutdown()
            ray.shutdown()

    def deploy(self) -> None:
        """Starts the replicas, or replaces all of them; returns when the new ones answer.

        Raises:
            HeadraceError: they cannot be made.
        """
        application = deployment(self._config).bind(self._recipe, self._home)
        try:
            serve.run(application, name=NAME, route_prefix="/")
        except RuntimeError as error:
            raise HeadraceError(
                f"the replicas cannot be started ({error}): {self._home.log_file('serve-*')} says"
                " why"
            ) from error


def deployment(config: RayServeConfig) -> Any:
    """How Serve is to run the replicas."""
    options = {
        "name": NAME,
        "ray_actor_options": {"num_cpus": config.cpus},
        "autoscaling_config": {
            "min_replicas": config.replicas,
            "max_replicas": config.max_replicas,
            "target_ongoing_requests": config.ongoing,
            "upscale_delay_s": config.upscale_delay_s,
            "downscale_delay_s": config.downscale_delay_s,
        },
        "max_ongoing_requests": config.max_ongoing,
        "max_queued_requests": config.max_queued,
        "health_check_period_s": 2.0,
        "health_check_timeout_s": 10.0,
        "graceful_shutdown_wait_loop_s": 0.1,
        "graceful_shutdown_timeout_s": config.drain_s,
        # One after another, and an old one answers until the new one does.
        "rolling_update_percentage": 0.2,
        "max_surge_percent": 25,
    }
    return serve.deployment(**options)(serve.ingress()(Answering))


def _machine(config: RayServeConfig) -> dict[str, Any]:
    """What Ray is told of this machine; nothing where it is told of a cluster that is there."""
    if os.environ.get("RAY_ADDRESS"):
        return {}
    return {
        # Ray only counts them. While replicas are being replaced there are more.
        "num_cpus": math.ceil(2 * config.max_replicas * config.cpus),
        "include_dashboard": False,
        "object_store_memory": _STORE_BYTES,
        "_system_config": {"worker_niceness": 0},  # else anything on this machine goes first
    }


def application(arguments: dict[str, str]) -> Any:
    """For Serve's own configuration files: `import_path: infra.ray_serve:application`.

    `arguments` are `recipe`, `home` and `log`, each as the option of the same name. Numbers of
    replicas are settings of the file itself.
    """
    from pathlib import Path

    from infra.recipe import load_recipe

    recipe = load_recipe(arguments.get("recipe", "movielens"))
    home = Home(Path(arguments.get("home", ".headrace")), arguments.get("log") or recipe.log)
    return deployment(RayServeConfig()).bind(recipe, home)


def serve_by_ray(
    recipe: Recipe, home: Home, port: int, config: RayServeConfig, console: Console
) -> None:
    """Runs until it is asked to stop; SIGHUP replaces the replicas one after another.

    Raises:
        HeadraceError: it cannot start.
    """
    check_port(recipe.serving.host, port)
    stopping, restart = threading.Event(), threading.Event()
    signal.signal(signal.SIGHUP, lambda *_: restart.set())
    application = RayServe(recipe, home, port, config)
    with stopped_by_signals(stopping), application.running(), stopped_by_signals(stopping):
        console.print("Starting the replicas (some seconds) ...")
        application.deploy()
        console.print(f"[bold green]Answering[/] at http://{recipe.serving.host}:{port}")
        while not stopping.wait(_LOOK_S):
            if restart.is_set():
                restart.clear()
                console.print("Replacing the replicas ...")
                application.deploy()
                console.print("All replicas are new.")
    console.print("Stopped.")
