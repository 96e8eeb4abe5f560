"""The agent of a device on a network that comes and goes: downloads, questions and reports."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import numpy as np

from edgeinfer.fleet.device.histogram import Histogram
from edgeinfer.fleet.device.journal import Journal
from edgeinfer.fleet.device.phases import Phase
from edgeinfer.fleet.device.staging import StagingResult
from edgeinfer.fleet.device.transport import MemoryTransport
from edgeinfer.fleet.device.verdicts import Verdict
from edgeinfer.fleet.errors import LocationError, TransportError
from edgeinfer.fleet.operator.figures import figures_by_model
from tests.fleet.device.kit import (
    NOW,
    FailingTransport,
    PassingChecker,
    Shelf,
    artifact_folder,
    assign,
    drive,
    installed,
    make_agent,
    reports,
    second,
)


def test_no_network_for_long_trips_nothing(folder, shelf):
    class Broken:
        fails = True

        def __init__(self, real):
            self._real = real

        def fetch(self, *arguments, **named):
            if self.fails:
                raise LocationError("The location broke off.")
            return self._real.fetch(*arguments, **named)

    agent = installed(folder, shelf)
    fetcher = Broken(agent.device.fetcher)
    agent.device.fetcher = fetcher
    shelf.desire(assign(second(shelf), 2), at=NOW + 1)
    for _ in range(200):
        agent.step()
    assert (agent.phase, agent.device.waiting) == (Phase.DOWNLOADING, "download")
    for _ in range(20):  # restarts in order do not, either
        agent.close()
        agent = make_agent(folder, shelf, fetcher=fetcher)
        agent.step()
    fetcher._real = make_agent(folder.parent / "other", shelf).device.fetcher
    agent.close()
    agent = make_agent(folder, shelf)
    assert drive(agent) is Phase.COMMITTED


def test_a_network_that_answers_slowly_is_not_asked_without_end(folder, shelf, monkeypatch):
    """Each question takes longer than the pause between two: the update must get its turn, too."""
    now = [1_000.0]
    clock = SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr("edgeinfer.fleet.device.desire.time", clock)
    monkeypatch.setattr("edgeinfer.fleet.device.outbox.time", clock)
    transport = MemoryTransport()
    asked, sent = [], []

    def slow(calls):
        def ask(*_):
            calls.append(now[0])
            now[0] += 30.0
            raise TransportError("The server cannot be reached.")

        return ask

    monkeypatch.setattr(transport, "desired", slow(asked))
    monkeypatch.setattr(transport, "send", slow(sent))
    with make_agent(folder, shelf, transport, options={"poll_s": 5.0}) as agent:
        agent.device.note("trial")
        agent.step()
        for look in (agent.device.alive, agent._outbox.work):
            for _ in range(100):  # as the watch over a child or a download does, ten times a second
                look()
                now[0] += 0.1
    assert len(asked) <= 4
    assert len(sent) <= 4


def test_a_ring_reaches_an_agent_that_waits_for_a_child(folder, shelf):
    transport = MemoryTransport()
    with make_agent(folder, shelf, transport, options={"poll_s": 1e6}) as agent:
        agent.step()
        release = shelf.publish()
        agent.device.alive()
        transport.put(shelf.document(assign(release, 1)))
        agent.device.alive()
        assert agent._desire._document is not None


def test_reports_wait_for_a_network_and_never_undo_an_update(folder, shelf):
    transport = FailingTransport()
    agent = make_agent(folder, shelf, transport)
    transport.inner.put(shelf.document(assign(shelf.publish(), 1)))
    assert drive(agent) is Phase.COMMITTED
    assert transport.inner.reports == []
    transport.fails = False
    agent._outbox._not_before = 0.0
    agent.step()
    assert reports(transport.inner, agent)[-1].phase is Phase.COMMITTED


def test_reports_now_and_then_how_each_model_serves(folder, shelf):
    from edgeinfer.fleet.device.application import connect

    transport = MemoryTransport()
    agent = make_agent(folder, shelf, transport, options={"report_s": 0.001})
    transport.put(shelf.document(*(assign(shelf.publish(model), 1) for model in "ab")))
    assert drive(agent) is Phase.COMMITTED
    transport.put(shelf.document(assign(second_of(shelf, "a"), 2), at=NOW + 1))
    assert drive(agent) is Phase.COMMITTED
    with connect(folder) as application:
        model = application.model("b", deadline_ms=1e-6)
        for _ in range(4):
            with model.request() as session:
                session.infer(np.ones((1, 4), np.float32))
        model.observe(confidence=0.5)
        application.allow()
        transport.reports.clear()
        time.sleep(0.01)
        agent.step()
    found = {report.model: report for report in reports(transport, agent)}
    assert (found["a"].generation, found["b"].generation) == ((1, 2), (1, 1))
    assert {report.phase for report in found.values()} == {Phase.COMMITTED}
    assert found["b"].digest == agent.device.running().models["b"].release
    metrics = found["b"].metrics
    assert (metrics["requests"], metrics["errors"], metrics["deadline_misses"]) == (4.0, 0.0, 1.0)
    assert (metrics["latency_ms"].count, metrics["confidence"].count) == (4, 1)
    assert metrics["peak_bytes"] > 1e6
    # The operator's side reads them so.
    figures = figures_by_model("b", metrics)["b"]
    assert {"latency_p50", "latency_p99", "confidence", "peak_bytes"} <= set(figures)
    assert (figures["errors"], figures["deadline_misses"]) == (0.0, 1.0)
    agent.close()


def test_reports_what_a_shadow_found_while_the_release_serves(folder, shelf):
    class Shadowing(PassingChecker):
        def shadow(self, request, alive):
            times = {name: Histogram([1.0]) for name in ("shadow_latency_ms", "shadow_reference_ms")}
            counts = {"shadow_requests": 1e6, "shadow_errors": 0.0, "shadow_agreement": 0.97}
            return StagingResult(verdict=Verdict.passed(), metrics={**times, **counts})

    transport = MemoryTransport()
    agent = make_agent(folder, shelf, transport, options={"report_s": 0.001}, checker=Shadowing())
    transport.put(shelf.document(assign(shelf.publish("a"), 1)))
    assert drive(agent) is Phase.COMMITTED
    transport.put(shelf.document(assign(second_of(shelf, "a"), 2, stage="shadow"), at=NOW + 1))
    assert drive(agent) is Phase.COMMITTED
    transport.reports.clear()
    time.sleep(0.01)
    agent.step()
    (found,) = (report for report in reports(transport, agent) if report.model == "a")
    assert found.phase is Phase.COMMITTED
    assert figures_by_model("a", found.metrics)["a"]["agreement"] == 0.97
    agent.close()


def second_of(shelf: Shelf, model: str):
    return shelf.publish(model, "2", artifact_folder(2.0))


def test_a_damaged_spool_costs_reports_and_nothing_else(folder, shelf):
    agent = installed(folder, shelf)
    agent.close()
    (folder / "spool.db").write_bytes(b"no database" * 1000)
    (folder / "spool.db-wal").unlink(missing_ok=True)
    agent = make_agent(folder, shelf)
    shelf.desire(assign(second(shelf), 2), at=NOW + 1)
    assert drive(agent) is Phase.COMMITTED


def test_an_agent_that_waits_for_long_is_stopped_soon(folder, shelf):
    agent = make_agent(folder, shelf, options={"poll_s": 3600.0})
    thread = threading.Thread(target=agent.run)
    thread.start()
    while not agent._started:
        time.sleep(0.01)
    agent.stop()
    thread.join(timeout=60)
    assert not thread.is_alive()
    assert Journal(folder).load().boots.clean


def test_downloads_are_held_to_the_rate_of_the_options(folder, shelf, monkeypatch):
    from edgeinfer.fleet.device import agent

    rates = []
    monkeypatch.setattr(agent, "Downloader", lambda *_, rate: rates.append(rate))
    for rate in (0.0, 5e4):
        make_agent(folder, shelf, options={"download_rate": rate}).close()
    assert rates == [None, 5e4]
