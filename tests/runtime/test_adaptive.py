"""Choosing among variants: the rules, and that no request is lost by them."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

import numpy as np
import onnx.parser
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgeinfer as ei
from edgeinfer.errors import InferenceError, InputError, OptionsError, SessionClosedError
from edgeinfer.runtime.adaptive.conditions import Conditions, read_conditions, trouble
from edgeinfer.runtime.adaptive.controller import Controller, Policy

IDLE_MS = (20.0, 12.0, 4.0)
X = {"x": np.ones((2, 3), np.float32)}
FINE = Conditions(memory_left=0.5)


def run(controller: Controller, count: int, factor: float) -> list:
    found = (controller.observe(controller.level, IDLE_MS[controller.level] * factor) for _ in range(count))
    return [switch for switch in found if switch is not None]


# The rules


def test_three_misses_among_twenty_lead_down_and_two_do_not():
    controller = Controller(IDLE_MS, 30.0)
    for latency in [35.0, *[20.0] * 9, 35.0, *[20.0] * 30]:
        assert controller.observe(0, latency) is None
    assert controller.observe(0, 35.0) is None
    assert controller.observe(0, 35.0) is None
    switch = controller.observe(0, 35.0)
    assert (switch.before, switch.after, controller.misses) == (0, 1, 5)
    assert "3 of the last 20" in switch.reason


def test_it_goes_straight_to_the_variant_that_keeps_the_deadline():
    controller = Controller(IDLE_MS, 30.0)
    (switch,) = run(controller, 3, 4.0)  # 12 ms would take 48
    assert switch.after == 2


def test_it_rises_only_when_the_prediction_leaves_a_margin():
    controller = Controller(IDLE_MS, 30.0, Policy(dwell=50))
    run(controller, 3, 2.0)
    assert controller.level == 1
    assert not run(controller, 400, 1.3)  # 20 ms would take 26, more than 0.85 of 30
    (switch,) = run(controller, 400, 1.2)
    assert switch.after == 0
    assert "predicted" in switch.reason


def test_each_rise_that_fails_doubles_the_dwell_and_one_that_lasts_halves_it():
    controller = Controller(IDLE_MS, 30.0, Policy(dwell=50, remembered=20))
    waits = []
    for _ in range(3):
        run(controller, 3, 2.0)
        assert controller.level == 1
        before = controller.requests
        (rise,) = run(controller, controller.dwell + 30, 1.0)[:1]
        waits.append(rise.request - before)
    assert waits == [50, 100, 200]
    run(controller, 2 * controller.dwell, 1.0)
    assert controller.dwell == 100


def test_an_idle_latency_that_was_measured_on_a_busy_machine_is_corrected():
    controller = Controller((60.0, 12.0), 30.0, Policy(dwell=30))
    controller.step_down("start")
    for _ in range(200):  # 60 ms of the better variant would be too much
        assert controller.observe(1, 12.0) is None
    assert controller.observe(0, 20.0) is None
    assert controller.idle_ms(0) == 20.0
    switches = [controller.observe(1, 12.0) for _ in range(30)]
    assert [switch.after for switch in switches if switch is not None] == [0]


def test_other_trouble_holds_rises_back():
    controller = Controller(IDLE_MS, 30.0, Policy(dwell=20))
    controller.step_down("memory")
    assert all(controller.observe(1, 12.0, may_rise=False) is None for _ in range(300))
    assert controller.observe(1, 12.0).after == 0


def test_what_runs_late_in_another_variant_does_not_count_against_this_one():
    controller = Controller(IDLE_MS, 30.0)
    run(controller, 3, 2.0)
    assert all(controller.observe(0, 40.0) is None for _ in range(50))
    assert controller.level == 1


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    factors=st.lists(st.floats(0.5, 20.0), max_size=300),
    excluded=st.lists(st.tuples(st.integers(0, 299), st.integers(0, 2)), max_size=3),
)
def test_the_variant_that_runs_is_always_a_usable_one(factors, excluded):
    controller = Controller(IDLE_MS, 30.0, Policy(dwell=5, remembered=20, window=5))
    for at, factor in enumerate(factors):
        for when, level in excluded:
            if when == at and sum(controller.usable) > 1:
                controller.exclude(level, "failed")
        assert controller.usable[controller.level]
        switch = controller.observe(controller.level, IDLE_MS[controller.level] * factor)
        assert switch is None or switch.before != switch.after == controller.level


@pytest.mark.parametrize(("idle", "deadline"), [((), 1.0), ((0.0,), 1.0), ((1.0,), 0.0), ((1.0,), "20")])
def test_what_cannot_be_chosen_among_is_refused(idle, deadline):
    with pytest.raises(OptionsError):
        Controller(idle, deadline)


# The session


def artifact(op: str = "Relu", name: str = "x") -> ei.Artifact:
    graph = f"g (float[N, 3] {name}) => (float[N, 3] y) {{ y = {op} ({name}) }}"
    text = f'<ir_version: 8, opset_import: ["": 17]> {graph}'
    return ei.compile(onnx.parser.parse_model(text), "onnxruntime")


@pytest.fixture
def variants() -> dict[str, ei.Artifact]:
    return {"float": artifact("Relu"), "int8": artifact("Abs"), "pruned": artifact("Neg")}


def test_it_answers_with_the_best_variant_and_tells_of_switches(variants):
    told = []
    with ei.AdaptiveSession(variants, deadline_ms=1e-6, shapes={"N": 2}, on_switch=told.append) as session:
        assert session.current == "float"
        for _ in range(3):
            assert session.infer(X)["y"].shape == (2, 3)
        assert session.current == "pruned"  # no variant keeps it: the cheapest
        assert (session.infer(X)["y"] == -1).all()
        assert session.deadline_misses == 4
        assert [switch.after for switch in told] == [2]
        assert "4 of 4 missed" in str(session)
        assert session.latencies_ms.shape == (4,)
        values = json.loads(json.dumps(session.to_dict()))
        assert (values["current"], values["misses"]) == ("pruned", 4)
    with pytest.raises(SessionClosedError):
        session.infer(X)


def test_a_variant_that_fails_loses_no_request(variants, monkeypatch):
    sessions = {name: ei.load(a) for name, a in variants.items()}
    with ei.AdaptiveSession(sessions, deadline_ms=1e6, shapes={"N": 2}) as session:

        def fail(*_: object) -> None:
            raise InferenceError("out of memory")

        monkeypatch.setattr(sessions["float"], "infer", fail)
        assert (session.infer(X)["y"] == 1).all()
        assert session.current == "int8"
        assert "out of memory" in session.switches[0].reason
        monkeypatch.setattr(sessions["int8"], "infer", fail)
        monkeypatch.setattr(sessions["pruned"], "infer", fail)
        with pytest.raises(InferenceError, match="out of memory"):
            session.infer(X)
    assert not any(each.closed for each in sessions.values())  # they are the caller's
    for each in sessions.values():
        each.close()


def test_an_input_that_does_not_fit_is_no_fault_of_the_variant(variants):
    with ei.AdaptiveSession(variants, deadline_ms=1e6, shapes={"N": 2}) as session:
        with pytest.raises(InputError):
            session.infer({"x": np.ones((2, 4), np.float32)})
        assert session.current == "float"


def test_memory_closes_the_better_variants_until_it_is_back(variants):
    state = [FINE]
    with ei.AdaptiveSession(
        variants, deadline_ms=1e6, shapes={"N": 2}, watch_s=None, conditions=lambda: state[0]
    ) as session:
        state[0] = Conditions(memory_waits=40.0)
        session.look()
        assert session.current == "int8"
        assert "wait for memory 40 %" in session.switches[0].reason
        assert "not loaded" in str(session)
        assert (session.infer(X)["y"] == 1).all()
        state[0] = FINE
        for _ in range(8):
            session.look()
        assert "not loaded" not in str(session)
        for _ in range(250):
            session.infer(X)
        assert session.current == "float"


def test_heat_leads_down_but_closes_nothing(variants):
    hot = Conditions(margin_c=1.0, sensor="cpu-thermal")
    with ei.AdaptiveSession(
        variants, deadline_ms=1e6, shapes={"N": 2}, watch_s=None, conditions=lambda: hot
    ) as session:
        session.look()
        assert session.current == "int8"
        assert "cpu-thermal" in session.switches[0].reason
        assert "not loaded" not in str(session)


def test_requests_go_on_while_variants_are_closed_and_loaded(variants):
    state = [FINE]
    wrong: list[object] = []
    stop = threading.Event()
    with ei.AdaptiveSession(
        variants, deadline_ms=1e6, shapes={"N": 2}, watch_s=None, conditions=lambda: state[0]
    ) as session:

        def ask() -> None:
            while not stop.is_set():
                try:
                    y = session.infer(X)["y"]
                    if not (np.abs(y) == 1).all():
                        wrong.append(y)
                except Exception as error:
                    wrong.append(error)

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        for turn in range(24):
            state[0] = Conditions(memory_waits=40.0) if turn % 8 == 0 else FINE
            session.look()
        stop.set()
        for thread in threads:
            thread.join()
    assert not wrong


def test_the_watcher_looks_by_itself_and_ends(variants):
    seen = threading.Event()

    def look() -> Conditions:
        seen.set()
        return FINE

    with ei.AdaptiveSession(variants, deadline_ms=1e6, shapes={"N": 2}, watch_s=0.01, conditions=look):
        assert seen.wait(10)
    assert "edgeinfer-adaptive" not in {thread.name for thread in threading.enumerate()}


def test_an_error_of_on_switch_costs_no_outputs(variants, monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "unraisablehook", seen.append)

    def fails(_: object) -> None:
        raise ValueError("mine")

    with ei.AdaptiveSession(variants, deadline_ms=1e-6, shapes={"N": 2}, on_switch=fails) as session:
        for _ in range(3):
            assert "y" in session.infer(X)
    assert str(seen[0].exc_value) == "mine"


def test_variants_of_another_signature_are_refused():
    with pytest.raises(InputError, match="differ"):
        ei.AdaptiveSession([artifact(), artifact(name="other")], deadline_ms=1.0)


@pytest.mark.parametrize("variants", [[], {}, "model.edge"])
def test_no_variant_is_refused(variants):
    with pytest.raises(OptionsError, match="no variant"):
        ei.AdaptiveSession(variants, deadline_ms=1.0)


def test_conditions_are_read_from_files(tmp_path: Path):
    files = {
        "proc/meminfo": "MemTotal: 1000 kB\nMemAvailable: 30 kB",
        "proc/pressure/memory": "some avg10=3.50 avg60=0 avg300=0 total=1",
        "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
        "sys/class/thermal/thermal_zone0/temp": "94000",
        "sys/class/thermal/thermal_zone0/trip_point_0_type": "passive",
        "sys/class/thermal/thermal_zone0/trip_point_0_temp": "95000",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    found = read_conditions(tmp_path)
    assert found == Conditions(memory_waits=3.5, memory_left=0.03, margin_c=1.0, sensor="cpu-thermal")
    assert trouble(found)[0] == "memory"
    assert trouble(Conditions(margin_c=1.0, sensor="a"))[0] == "heat"
    assert trouble(Conditions()) == ("", "")
