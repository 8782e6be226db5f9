"""The parent of a server's workers: it holds the ports, keeps the workers running, and speaks for all of them.

In      a configuration, how Python is started; signals; what workers tell
Out     running workers; log, counters and status of the whole server; an exit code
Knows   when a worker is wanted, and when it is not any more. Not: sessions, encryption
Cost    8 MiB (PSS), with --status; for each worker a question and an answer each second

It serves nothing itself, so it has no reason to die. What it holds outlives each worker: the ports, and the inbox in
which others leave what is meant for one (net/ends/siblings). A worker that is started again finds there what has come
meanwhile.
"""

import os
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from signal import SIGHUP, SIGKILL, SIGTERM, Signals
from time import sleep, time
from typing import TYPE_CHECKING, Any

from kcptun_lite import __version__, log
from kcptun_lite.app import signals
from kcptun_lite.app.config import Plain, ServerConfig
from kcptun_lite.app.listening import cannot_listen, listen_patiently
from kcptun_lite.app.process import set_up_log, set_up_process
from kcptun_lite.app.stats import SnmpLog, snmp_line
from kcptun_lite.app.status_form import SCHEMA
from kcptun_lite.app.workers import merge, reload
from kcptun_lite.app.workers.holdings import Holdings
from kcptun_lite.app.workers.process import Python, Worker, start
from kcptun_lite.app.workers.share import COUNTERS, DRAIN, FORGET, HEALTH, STATUS, Place, of_worker
from kcptun_lite.core.counters import CSV_COLUMNS, Counters
from kcptun_lite.errors import KcptunError, TransportError, describe_exception, describe_os_error
from kcptun_lite.net.event_loop import EventLoop
from kcptun_lite.net.session.update_thread import monotonic_ms
from kcptun_lite.net.udp.shared_port import SharedPorts

if TYPE_CHECKING:
    from kcptun_lite.app.health import Health
    from kcptun_lite.app.notify import Notifier
    from kcptun_lite.app.status_file import StatusFile

HOUSEKEEPING = 1000  # ms
BRIEF = 0.02  # s between two looks at something that is about to happen
BEGIN_LIMIT = 30_000  # ms until a worker must serve
FIRST_PAUSE, LAST_PAUSE = 1000, 30_000  # ms before a worker is started again, doubled each time ...
GOOD_LIFE = 60_000  # ms ... unless it has lived so long
STOP_LIMIT = 3500  # ms until workers that are told to stop are killed: a second more than they take
ANSWER_LIMIT = 1000  # ms that a report waits for the workers' counters
HUNG_AFTER = 30  # questions, one a second: whoever has answered none of them serves nobody any more
SILENCE = 10_000  # ms; a worker that has not answered for so long keeps signs of life from systemd


class Parent:
    """One server with several workers."""

    def __init__(self, python: Python, config: Plain, origin: reload.Origin) -> None:
        self._python, self._plain, self._origin = python, config, origin
        self._config = ServerConfig.unpack(config)
        self._loop = EventLoop()
        self._workers: dict[int, Worker] = {}
        "pid -> worker"
        self._retired: dict[str, int] = {}
        "what workers that have ended had counted"
        self._pauses: dict[int, int] = {}
        "index -> ms of the last pause before it was started again"
        self._due: dict[int, int] = {}
        "index -> ms at which it is to be started"
        self._generation = 0
        self._is_reload_wanted = self._is_draining = self._is_stopping = False
        self._started_at = monotonic_ms()
        self._looked_at = 0
        self._snmp_log = SnmpLog(self._config.snmplog, self._config.snmpperiod)
        self._status_file = self._make_status_file() if self._config.status else None
        self._has_status = False
        self._notifier = self._make_notifier()
        self._health: Health | None = None

    # -- life ----------------------------------------------------------------------------------

    def run(self, inherited: reload.Inherited | None) -> int:
        """Work until SIGTERM or SIGINT; returns the exit code.

        Raises: KcptunError if it cannot begin; nothing of it is left then.
        """
        self._snmp_log.check()
        if self._status_file:
            self._status_file.check()
        config = self._config
        if inherited:
            self._holdings = Holdings.restore(inherited["holdings"])
            self._go_on(inherited)
        else:
            self._holdings = Holdings.make(listen_patiently(self._open_ports), config.workers)
        signals.block(signals.OF_PARENT)
        self._loop.start()
        try:
            self._open_health(inherited)
            exit_code = self._start_all()
            if exit_code is None:
                self._work()
        finally:
            self._shut_down()
        if exit_code:
            return exit_code
        log.info("stopped", "stopped")
        return 0

    def _open_ports(self) -> SharedPorts:
        listen = self._config.listen
        try:
            return SharedPorts.open(listen.host, listen.port_min, listen.port_max, self._config.workers)
        except TransportError as exc:
            raise cannot_listen("--listen", listen, exc) from exc.__cause__

    def _start_all(self) -> int | None:
        """Start the first worker, which shows whether it can be done, then all others; the exit code if it cannot."""
        count = self._config.workers
        log.info(f"{count} workers; each has 1/{count} of --maxsessions, --maxstreams and --memlimit")
        if not self._holdings.is_steered:
            log.warning("the system cannot hold clients to their workers: what comes from them may take turns")
        try:
            first = self._start(0)
        except OSError as exc:
            if not self._workers:
                raise
            self._stay_with_old(describe_os_error(exc))
            return None
        while not first.is_ready:
            if signals.wait(BRIEF, signals.STOP):
                return 0
            if monotonic_ms() - first.started_at > BEGIN_LIMIT:
                log.error(f"a worker has not begun to serve within {BEGIN_LIMIT // 1000} s")
                first.signal(SIGKILL)
            ended = self._collect()
            if first.pid in ended and not self._workers:
                return abs(ended[first.pid]) or KcptunError.exit_code
            if first.pid in ended:
                self._stay_with_old("the first new one has ended")
                return None
        self._due = dict.fromkeys(range(1, count), 0)
        return None

    def _work(self) -> None:
        """Until a signal to stop; nothing that fails here ends the program."""
        is_told = False
        while (number := signals.wait(self._patience() if is_told else BRIEF, signals.OF_PARENT)) not in signals.STOP:
            for wanted, step in (
                (signals.CHILD, self._bury),
                (signals.REPORT, self._report),
                (signals.REDIAL, self._pass_hangup_on),
                (signals.RELOAD, self._want_reload),
                (signals.DRAIN, self._drain_all),
            ):
                if number == wanted:
                    self._try(step)
            now = monotonic_ms()
            self._try(lambda now=now: self._start_due(now))  # type: ignore[misc]
            if not is_told and all(worker.is_ready for worker in self._current()) and not self._due:
                is_told = True
                self._try(self._tell_ready)
                self._try(self._drain_old)
            if now - self._looked_at >= HOUSEKEEPING:
                self._looked_at = now
                for chore in self._chores():
                    self._try(lambda chore=chore, now=now: chore(now))  # type: ignore[misc]
        log.info(f"stopping: {Signals(number).name}", "stopping", signal=Signals(number).name)

    def _chores(self) -> list[Callable[[int], None]]:
        return [
            lambda now: self._ask(),
            lambda now: self._end_hung(),
            lambda now: self._look_at_parent(),
            lambda now: self._snmp_log.tick(now, self._counters),
            self._tell_systemd,
            lambda now: self._look_at_end(),
            lambda now: self._reload_if_wanted(),
            self._show_status,
        ]

    def _patience(self) -> float:
        """s"""
        now = monotonic_ms()
        return max(0, min([HOUSEKEEPING - (now - self._looked_at), *(at - now for at in self._due.values())])) / 1000

    def _try(self, step: Callable[[], None]) -> None:
        with log.told("housekeeping"):
            step()

    def _shut_down(self) -> None:
        self._is_stopping = True
        if self._notifier:
            self._notifier.stopping()
        for worker in self._workers.values():
            worker.signal(SIGTERM)
        deadline = monotonic_ms() + STOP_LIMIT
        while self._workers:
            if monotonic_ms() >= deadline:
                for worker in self._workers.values():
                    worker.signal(SIGKILL)
            sleep(BRIEF)
            self._collect()
        self._loop.stop()
        if self._health:
            self._health.close()
        if self._status_file:
            self._status_file.remove()

    # -- workers -------------------------------------------------------------------------------

    def _current(self) -> list[Worker]:
        return [worker for worker in list(self._workers.values()) if not worker.is_old]

    def _start(self, index: int) -> Worker:
        """Start a worker of now. Raises: OSError."""
        slot = self._slot(index)
        is_first = not any(worker.is_ready for worker in self._current())
        place: Place = {
            "index": index,
            "slot": slot,
            "ports": [(port.descriptor, port.is_read) for port in self._holdings.ports_of(index)],
            "is_steered": self._holdings.is_steered,
            "inbox": self._holdings.inboxes[slot][0],
            "outboxes": {other: box[1] for other, box in enumerate(self._holdings.inboxes) if other != slot},
            "awaited": [worker.slot for worker in self._workers.values() if worker.is_ready and worker.slot != slot],
            "channel": -1,
            "is_hushed": not is_first,
        }
        worker = start(
            self._python, of_worker(self._plain), self._origin["warnings"] if is_first else [], place, monotonic_ms()
        )
        self._add(worker)
        return worker

    def _slot(self, index: int) -> int:
        return self._generation * self._config.workers + index

    def _add(self, worker: Worker) -> None:
        self._workers[worker.pid] = worker
        self._loop.watch(worker.channel.fileno(), lambda: self._hear(worker))

    def _hear(self, worker: Worker) -> None:
        if not worker.hear(monotonic_ms()):
            self._loop.forget(worker.channel.fileno())

    def _collect(self) -> dict[int, int]:
        """Forget workers that have ended; returns their exit codes, or signals below 0, by pid."""
        ended: dict[int, int] = {}
        for pid, worker in list(self._workers.items()):
            with suppress(ChildProcessError):
                found, status = os.waitpid(pid, os.WNOHANG)
                if not found:
                    continue
                ended[pid] = os.waitstatus_to_exitcode(status)
            self._retired = _add(self._retired, merge.retire(worker.counters))
            del self._workers[pid]
            self._loop.forget(worker.channel.fileno())
            worker.channel.close()
        return ended

    def _bury(self) -> None:
        """Workers have ended: have those started again that should not have."""
        before = dict(self._workers)
        for pid, exit_code in self._collect().items():
            worker = before[pid]
            if worker.is_old:
                log.info(f"old worker {worker.index + 1} has ended")
                for other in self._workers.values():
                    other.ask(FORGET + bytes([worker.slot]))
                continue
            if self._is_draining:
                log.info(f"worker {worker.index + 1} has ended")
                continue
            now = monotonic_ms()
            lived = now - worker.started_at
            pause = self._pauses.get(worker.index, 0)
            pause = FIRST_PAUSE if lived >= GOOD_LIFE or not pause else min(2 * pause, LAST_PAUSE)
            self._pauses[worker.index] = pause
            self._due[worker.index] = now + pause
            how = f"exit code {exit_code}" if exit_code >= 0 else Signals(-exit_code).name
            log.warning(f"worker {worker.index + 1} has ended ({how}); it is started again in {pause // 1000} s")

    def _start_due(self, now: int) -> None:
        for index in [index for index, at in self._due.items() if at <= now]:
            del self._due[index]
            try:
                self._start(index)
            except OSError as exc:
                self._due[index] = now + LAST_PAUSE
                log.error(f"worker {index + 1} cannot be started: {describe_os_error(exc)}")

    def _pass_hangup_on(self) -> None:
        log.reopen()
        for worker in self._workers.values():
            worker.signal(SIGHUP)

    def _look_at_parent(self) -> None:
        if self._config.parent and os.getppid() != self._config.parent:
            log.info("the program that has started this one is gone")
            os.kill(os.getpid(), SIGTERM)

    # -- reload --------------------------------------------------------------------------------

    def _want_reload(self) -> None:
        if self._is_draining:
            return log.info("reload: the server is about to end; nothing has changed")
        self._is_reload_wanted = True
        if any(worker.is_old for worker in self._workers.values()):
            log.info("reload: it waits for the old workers, which still serve what was open at the last one")
        self._reload_if_wanted()

    def _reload_if_wanted(self) -> None:
        """Become a parent with the settings and the program of now; old workers go on until the new ones serve."""
        if not self._is_reload_wanted or self._is_draining or any(worker.is_old for worker in self._workers.values()):
            return
        self._is_reload_wanted = False
        try:
            job = reload.read_settings(self._origin, self._plain)
        except KcptunError as exc:
            log.error(f"reload: {exc}; nothing has changed")
            return
        log.info("reload: new workers take over", "reload")
        if self._status_file and job["config"]["status"] != self._config.status:  # else it is replaced
            self._status_file.remove()
        keeps_health = ServerConfig.unpack(job["config"]).health == self._config.health
        workers = list(self._workers.values())
        inherited: reload.Inherited = {
            "holdings": self._holdings.numbers,
            "workers": [(one.index, one.slot, one.pid, one.channel.fileno(), one.started_at) for one in workers],
            "retired": self._retired,
            "generation": self._generation,
            "health": self._health.hand_over() if self._health and keeps_health else -1,
            "started_at": self._started_at,
        }
        try:
            reload.execute(job, inherited)
        except OSError as exc:
            reload.close_to_children(inherited)
            if self._health:
                self._health.go_on()
            log.error(f"reload: {describe_os_error(exc)}; nothing has changed")

    def _go_on(self, inherited: reload.Inherited) -> None:
        """Take what the parent has left that this process was before."""
        reload.close_to_children(inherited)
        self._retired, self._started_at = inherited["retired"], inherited["started_at"]
        self._generation = 1 - inherited["generation"]
        for index, slot, pid, channel, started_at in inherited["workers"]:
            worker = Worker(index, slot, pid, socket.socket(fileno=channel), started_at)
            worker.listening, worker.is_old = str(self._config.listen), True
            worker.heard_at, worker.trouble = monotonic_ms(), ""
            self._add(worker)

    def _stay_with_old(self, why: str) -> None:
        """The new program cannot serve: those that can go on."""
        log.error(f"reload: new workers cannot serve ({why}); the old ones go on")
        self._generation = 1 - self._generation
        for worker in self._workers.values():
            worker.is_old = False
        served = {worker.index for worker in self._workers.values()}
        self._due = {index: 0 for index in range(self._config.workers) if index not in served}

    def _drain_old(self) -> None:
        for worker in self._workers.values():
            if worker.is_old:
                worker.ask(DRAIN + bytes([self._slot(worker.index)]))

    # -- the end -------------------------------------------------------------------------------

    def _drain_all(self) -> None:
        """End when the streams of all workers have ended, or --drain seconds are over."""
        if not self._is_draining:
            log.info(f"draining: no new sessions; what is open may go on for {self._config.drain} s", "draining")
        self._is_draining = True
        self._due.clear()
        for worker in self._workers.values():
            worker.ask(DRAIN)

    def _look_at_end(self) -> None:
        if self._is_draining and not self._workers:
            os.kill(os.getpid(), SIGTERM)

    # -- the whole -----------------------------------------------------------------------------

    def _ask(self) -> None:
        for worker in list(self._workers.values()):
            if worker.is_ready:
                worker.unanswered += 1
                worker.ask(COUNTERS)
                if self._status_file:
                    worker.ask(STATUS)
                if self._health:
                    worker.ask(HEALTH)

    def _end_hung(self) -> None:
        """Its clients find nobody, and an old one would hold up all further reloads."""
        for worker in list(self._workers.values()):
            if worker.unanswered >= HUNG_AFTER:
                log.error(f"worker {worker.index + 1} has not answered for {HUNG_AFTER} s: it is killed")
                worker.signal(SIGKILL)

    def _counters(self) -> Counters:
        return merge.total([self._retired, *(worker.counters for worker in list(self._workers.values()))])

    def _report(self) -> None:
        asked_at = monotonic_ms()
        ready = [worker for worker in self._workers.values() if worker.is_ready]
        for worker in ready:
            worker.ask(COUNTERS)
        while monotonic_ms() < asked_at + ANSWER_LIMIT and any(worker.heard_at < asked_at for worker in ready):
            sleep(BRIEF)
        counters = self._counters()
        fields = {name: getattr(counters, CSV_COLUMNS[name]) for name in CSV_COLUMNS}
        log.info(snmp_line(counters), "counters", **fields)

    def _make_status_file(self) -> "StatusFile":
        from kcptun_lite.app.status_file import StatusFile

        return StatusFile(self._config.status, self._loop, self._status)

    def _show_status(self, now: int) -> None:
        """Once all workers have told theirs: half of the sums would look as if the rest were gone."""
        self._has_status = self._has_status or all(worker.status for worker in self._workers.values())
        if self._status_file and self._has_status:
            self._status_file.tick(now)

    def _status(self) -> dict[str, Any]:
        own = {
            "pid": os.getpid(),
            "schema": SCHEMA,
            "role": "server",
            "name": self._config.name,
            "version": __version__,
            "uptime_s": (monotonic_ms() - self._started_at) // 1000,
            "updated": round(time(), 3),
        }
        parts = [worker.status for worker in list(self._workers.values()) if worker.status]
        return merge.status(parts, self._counters(), own)

    # -- balancers -----------------------------------------------------------------------------

    def _open_health(self, inherited: reload.Inherited | None) -> None:
        """Raises: TransportError."""
        if self._config.health:
            from kcptun_lite.app.health import Health, open_health

            if inherited and inherited["health"] >= 0:  # so that nobody finds the port closed meanwhile
                self._health = Health(self._loop, socket.socket(fileno=inherited["health"]), self._trouble)
            else:
                self._health = open_health(self._config.health, self._loop, self._trouble)

    def _trouble(self) -> str:
        """Why new sessions are not welcome, in a word; nothing as long as one worker takes some."""
        if self._is_stopping or self._is_draining:
            return "stopping" if self._is_stopping else "draining"
        now = monotonic_ms()
        troubles = [one.trouble for one in list(self._workers.values()) if now - one.heard_at < SILENCE]
        return "" if "" in troubles else (troubles or ["starting"])[-1]

    # -- systemd -------------------------------------------------------------------------------

    def _make_notifier(self) -> "Notifier | None":
        if "NOTIFY_SOCKET" not in os.environ:
            return None
        from kcptun_lite.app.notify import Notifier

        return Notifier(os.environ)

    def _tell_ready(self) -> None:
        if self._notifier:
            self._notifier.ready(f"listening on {self._config.listen}, {self._config.workers} workers")

    def _tell_systemd(self, now: int) -> None:
        is_alive = all(now - worker.heard_at < SILENCE for worker in self._current())
        if self._notifier and self._notifier.interval and is_alive:
            self._notifier.update(now)


def _add(counts: Mapping[str, int], more: Mapping[str, int]) -> dict[str, int]:
    return {name: counts.get(name, 0) + more.get(name, 0) for name in counts.keys() | more.keys()}


def main(python: tuple[Any, ...], config: Plain, origin: reload.Origin, inherited: reload.Inherited | None) -> int:
    """Run the parent until it ends; returns the exit code."""
    signals.hold()
    set_up_process("server")
    try:
        set_up_log("server", config)
        return Parent(Python(*python), config, origin).run(inherited)
    except KcptunError as error:
        log.error(str(error))
        return error.exit_code
    except Exception as error:  # a bug, or a system without memory, descriptors or threads to begin with
        log.error(f"cannot go on: {describe_exception(error)}")
        return KcptunError.exit_code
