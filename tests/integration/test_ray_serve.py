"""Replicas under Ray Serve: replaced one after another, and killed, while requests come."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest

from benchmarks._service import Service, replica, service

pytestmark = pytest.mark.timeout(600)
pytest.importorskip("grpc_reflection", reason="Ray Serve needs the extra `ray-serve`")


class Clients:
    """Several clients that ask one after another; a request that fails is sent once more."""

    def __init__(self, at: Service, count: int = 3) -> None:
        self._at = at
        self.asked = 0
        self.failed: list[object] = []
        self.lost: list[object] = []
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        client = Service(self._at.port, self._at.process, self._at.output)
        while not self._stopping.wait(0.05):
            self.asked += 1
            if (failure := self._failure(client)) is not None:
                self.failed.append(failure)
                if (again := self._failure(client)) is not None:
                    self.lost.append(again)
        client.close()

    def _failure(self, client: Service) -> object:
        try:
            status, _ = client.request("GET", "/v1/recommend?user_id=1")
        except OSError as error:
            return error
        return None if status == 200 else status

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()


def replicas(home: Path) -> dict[str, int]:
    """Name and process of every replica that lives."""
    found = {}
    for file in (home / "logs").glob("serve-*.log"):
        for name, process in re.findall(r"the replica (\w+) is process (\d+)", file.read_text()):
            if psutil.pid_exists(int(process)):
                found[name] = int(process)
    return found


def test_replicas_are_replaced_and_killed_while_requests_come(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with service(home, {"replay.limit": 10_000}) as run:
        run.wait_until_ready()
        run.wait_for(run.caught_up)
        with replica(home, "--ray", "--replicas", "2", "--max-replicas", "2") as proxy:
            proxy.wait_until_ready()
            proxy.wait_for(lambda: "Answering" in proxy.output.read_text())
            first = replicas(home)
            assert len(first) == 2
            for process in psutil.Process(proxy.process.pid).children(recursive=True):
                for socket in process.net_connections("tcp"):
                    if socket.status == psutil.CONN_LISTEN:
                        ip = socket.laddr.ip.removeprefix("::ffff:")  # IPv4 in IPv6
                        assert ip in ("127.0.0.1", "::1"), process.name()

            clients = Clients(proxy)
            proxy.process.send_signal(signal.SIGHUP)
            proxy.wait_for(lambda: "All replicas are new." in proxy.output.read_text(), 300)
            proxy.wait_for(lambda: len(replicas(home)) == 2)
            second = replicas(home)
            assert not first.keys() & second.keys()
            assert clients.failed == []  # not one request, while all were replaced

            os.kill(next(iter(second.values())), signal.SIGKILL)
            time.sleep(0.5)
            proxy.wait_for(lambda: len(replicas(home)) == 2)
            clients.stop()
            assert clients.lost == []  # whom the dead one had taken asks again and is answered
            assert len(clients.failed) <= 3  # at most one for each client, in flight at the kill
            assert set(clients.failed) <= {500}  # which Serve does not try elsewhere
            assert clients.asked > 100
