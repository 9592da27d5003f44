"""A cluster has a host as long as its program wants one."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import pytest

from flowgentic_actors.actors.process_group import HostProcess
from flowgentic_actors.cluster.protocol.host import Describe, Description
from flowgentic_actors.errors import ClusterOpenError, FlowgenticError
from flowgentic_actors.platform import Platform
from tests.support.counter import PATIENCE
from tests.support.host_processes import RunningHost, host_spec, running_host


class Broken(Platform):
    """Starts something else than a host."""

    def launch_host(
        self,
        command: list[str],
        folder: Path,
        log_file: Path,
        pid_file: Path,
        *,
        nodes: int,
        timeout: float,
    ) -> HostProcess:
        program = "import sys; print('no such library', file=sys.stderr); sys.exit(3)"
        wrong = [sys.executable, "-c", program]
        return super().launch_host(wrong, folder, log_file, pid_file, nodes=nodes, timeout=timeout)


def test_a_host_that_dies_has_a_successor_that_goes_on_with_the_events(folder: Path) -> None:
    with running_host(host_spec(folder)) as host:
        pids = {actor.pid for actor in host.status.actors}
        host.kill()
        host.until(lambda: host.status.host_restarts == 1)
        assert host.events("host_restarted") == ["the one before has died"]
        assert len(host.events("cluster_opened")) == 1
        host.until(lambda: {actor.state for actor in host.status.actors} == {"running"})
        assert not pids & {actor.pid for actor in host.status.actors}
        assert host.watchdog.close(PATIENCE) == ""


def test_after_too_many_deaths_requests_are_refused_with_the_reason(folder: Path) -> None:
    spec = host_spec(folder)
    supervision = msgspec.structs.replace(spec.supervision, restart_intensity=1)
    with running_host(msgspec.structs.replace(spec, supervision=supervision)) as host:
        host.kill()
        host.until(lambda: host.status.host_restarts == 1)
        host.kill()

        def refused() -> bool:
            try:
                host.ask(Describe(), Description)
            except FlowgenticError as error:
                return "has failed: its host was restarted 1 times" in str(error)
            return False

        host.until(refused)
        assert host.watchdog.close(PATIENCE) == "it had failed before"


def test_a_host_that_does_not_start_is_told_with_the_last_line_of_its_log(folder: Path) -> None:
    with pytest.raises(ClusterOpenError, match=r"exit code 3.*no such library"):
        RunningHost(host_spec(folder), Broken())
