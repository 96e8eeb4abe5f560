"""The operator's page, its figures and webhooks: of a simulated rollout, over real sockets."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import threading
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlencode

import attrs
import pytest

import edgeinfer as ei
from edgeinfer.fleet import FailureRate, Regression, Stage
from edgeinfer.fleet.operator import commands
from edgeinfer.fleet.operator.server.options import ServerOptions
from edgeinfer.fleet.operator.server.running import background
from edgeinfer.fleet.operator.simulator.faults import Quality
from edgeinfer.fleet.operator.simulator.world import START, World
from edgeinfer.fleet.operator.specification import Specification
from edgeinfer.fleet.operator.store.database import Database
from edgeinfer.fleet.operator.store.inventory import DeviceRow, save_release
from tests.fleet.served import TOKEN, Served, until
from tests.fleet.toy_fleet import ToyFleet

OLD, NEW, NEXT = "a" * 64, "b" * 64, "c" * 64
HOUR = 3600


def simulated(path):
    """Return a store with the history of a rollout that failed, and one that is only planned."""
    world = None
    database = Database(str(path), clock=lambda: START if world is None else world.now)
    world = World(seed=3, release=OLD, database=database)
    for version, digest in enumerate((OLD, NEW, NEXT), 1):
        save_release(database, digest=digest, model="m", version=str(version))
    world.quality[NEW] = Quality(rolled_back=0.5, slower=0.2)
    world.add(DeviceRow(device=f"d{n}", device_class="<b>"[n % 3], site="s") for n in range(60))
    world.run(2 * HOUR)
    gates = [FailureRate(max=0.14), Regression("latency_p99", margin=0.05)]
    wanted = Specification(
        stages=[Stage(count=20, soak="4h"), Stage(percent=100)], gates=gates, on_fail="pause"
    )
    number = commands.draft(database, model="m", release=NEW, specification=wanted)
    commands.start(database, number)
    assert world.run_until(lambda: commands.get(database, number).state.value == "FAILED", 48 * HOUR)
    commands.draft(database, model="m", release=NEXT, specification=wanted)
    return database


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    ToyFleet(folder / "fleet")
    fleet = ei.fleet.open(folder / "fleet", passphrase=lambda _: None)
    fleet.database = simulated(folder / "simulated.db")
    with fleet, background(fleet, ServerOptions(token=TOKEN, controller=False)) as url:
        yield Served(fleet, url)


@pytest.fixture(scope="module")
def cookie(server):
    return sign_in(server)


def sign_in(server, token=TOKEN, name="alice"):
    response = server.ask("POST", "/login", body=urlencode({"token": token, "name": name}))
    return response.headers.get("Set-Cookie", "").partition(";")[0]


def page(server, path, cookie=None):
    response = server.ask("GET", path, headers={"Cookie": cookie} if cookie else {})
    assert response.status == 200, path
    text = response.data.decode()
    Balanced().feed(text)
    return text


class Balanced(HTMLParser):
    """Fails on tags that are not closed in order."""

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "input", "br", "rect", "circle", "line"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("rect", "circle", "line"):
            assert self.open.pop() == tag, f"</{tag}> closes another"


def test_a_rollout_is_shown_with_stages_gates_failures_and_pictures(server):
    text = page(server, "/rollouts/1")
    for part in ("FAILED", "FailureRate", "Regression(latency_p99)", "ROLLED_BACK", "canaries (blue)",
                 "Audit log", "<svg"):  # fmt: skip
        assert part in text, part
    code = re.search(r"<td>ROLLED_BACK</td><td>([^<]+)</td><td>(\d+)</td>", text)
    assert code is not None
    assert int(code[2]) > 1
    assert "failed in stage 1" in text


def test_all_pages_are_well_formed_and_escape_what_devices_say(server):
    for path in ("/", "/rollouts/1", "/rollouts/2", "/devices", "/devices/d1", "/devices/nobody", "/login"):
        text = page(server, path)
        assert "<b>" not in text  # the class of some devices is `<`, `b` or `>`
        assert "http://" not in text.replace("http://www.w3.org", ""), "nothing from elsewhere"
    response = server.ask("GET", "/rollouts/99")
    assert response.status == 404


def test_scripts_of_others_do_not_run(server):
    policy = server.ask("GET", "/").headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    nonce = re.search(r"script-src 'nonce-([\w-]+)'", policy)[1]
    assert nonce not in server.ask("GET", "/").headers["Content-Security-Policy"]


def test_without_a_token_there_is_nothing_to_act_with(server):
    text = page(server, "/rollouts/2")
    assert "<button formaction" not in text
    for headers in ({}, {"Cookie": "edgeinfer-session=forged.00"}, {"Authorization": "Bearer wrong"},
                    {"Cookie": "edgeinfer-session="}, {"Cookie": "edgeinfer-session=ÿ.ÿ"}):  # fmt: skip
        response = server.ask("POST", "/rollouts/2/start", body=b"", headers=headers)
        assert response.status == 403, headers
    assert commands.get(server.fleet.database, 2).state.value == "DRAFT"


def test_a_wrong_token_signs_nobody_in(server):
    assert sign_in(server, token="wrong") == ""
    assert server.ask("POST", "/login", body=urlencode({"token": "wrong"})).status == 403


def test_forgery_is_refused(server, cookie):
    csrf = re.search(r"name='csrf' value='([0-9a-f]+)'", page(server, "/rollouts/2", cookie))[1]
    other = re.search(
        r"name='csrf' value='([0-9a-f]+)'", page(server, "/rollouts/2", sign_in(server, name="bob"))
    )[1]
    for body, headers in (
        ({}, {}),
        ({"csrf": other}, {}),
        ({"csrf": csrf}, {"Origin": "https://elsewhere.example"}),
        ({"csrf": csrf}, {"Sec-Fetch-Site": "cross-site"}),
    ):
        response = server.ask(
            "POST", "/rollouts/2/start", body=urlencode(body), headers={"Cookie": cookie, **headers}
        )
        assert response.status == 403, (body, headers)
    assert commands.get(server.fleet.database, 2).state.value == "DRAFT"


def test_an_operator_acts_and_the_log_says_who(server, cookie):
    text = page(server, "/rollouts/1", cookie)
    assert "alice" in text
    csrf = re.search(r"name='csrf' value='([0-9a-f]+)'", text)[1]

    def act(action, reason):
        body = urlencode({"csrf": csrf, "reason": reason})
        return server.ask(
            "POST", f"/rollouts/1/{action}", body=body, headers={"Cookie": cookie, "Origin": server.url}
        )

    refused = act("resume", "")
    assert (refused.status, b"reason is needed" in refused.data) == (409, True)
    assert act("abort", "enough seen").status == 303
    assert "alice" in page(server, "/rollouts/1")
    assert "enough seen" in page(server, "/rollouts/1")
    assert commands.get(server.fleet.database, 1).state.value == "ABORTED"
    assert act("nonsense", "").status == 400


def test_a_program_acts_with_the_token(server):
    response = server.ask("POST", "/rollouts/99/start", headers={"Authorization": f"Bearer {TOKEN}"})
    assert response.status == 409
    assert "no such rollout" in response.json()["error"]


def test_a_session_ends(server, cookie, monkeypatch):
    monkeypatch.setattr("edgeinfer.fleet.operator.server.sessions.time.time", lambda: 4e9)
    assert "alice" not in page(server, "/devices", cookie)


def test_prometheus_can_read_the_figures(server):
    text = server.ask("GET", "/metrics").data.decode()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r'[a-z_]+(\{([a-z]+="(\\.|[^"\\])*",?)+\})? [0-9.e+-]+', line) for line in lines)
    assert any(line.startswith('edgeinfer_rollout_devices{rollout="1",stage="1"') for line in lines)
    devices = [line for line in lines if line.startswith("edgeinfer_devices{")]
    assert sum(float(line.rpartition(" ")[2]) for line in devices) == 60


def test_open_pages_hear_of_changes(server):
    stream = server.ask("GET", "/events", preload_content=False)
    heard = []

    def listen():
        while b"data: " not in b"".join(heard):
            heard.append(stream.read1())

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    until(lambda: _touch(server, thread))
    stream.close()


def _touch(server, thread):
    from edgeinfer.fleet.operator.store.rollouts import note

    with server.fleet.database.transaction() as connection:
        note(connection, now=1, rollout=None, actor="test", action="test", reason="touch")
    thread.join(0.3)
    return not thread.is_alive()


def test_webhooks_hear_of_each_line_of_the_audit_log_once_and_in_order(server, tmp_path):
    heard, statuses = [], [500, 200]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status = statuses.pop(0) if statuses else 200
            if status == 200:
                heard.append((body, self.headers["Edgeinfer-Signature"]))
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_):
            pass

    from edgeinfer.fleet.operator.server.webhooks import Webhooks
    from edgeinfer.fleet.operator.store.database import value_of
    from edgeinfer.fleet.operator.store.rollouts import note

    database = server.fleet.database
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as receiver:
        threading.Thread(target=receiver.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        url = f"http://127.0.0.1:{receiver.server_port}/hook"
        name = f"webhook/{hashlib.sha256(url.encode()).hexdigest()[:16]}"
        hooks = Webhooks(database, [url], "secret", interval=0.01)

        def begun():
            with database.reading() as connection:
                return value_of(connection, name)

        until(begun)
        with database.transaction() as connection:
            for number in range(3):
                note(connection, now=5, rollout=1, actor="test", action="hook", reason=f"line {number}")
        until(lambda: len(heard) == 3)
        hooks.close()
        receiver.shutdown()
    assert [json.loads(body)["reason"] for body, _ in heard] == ["line 0", "line 1", "line 2"]
    body, signature = heard[0]
    assert signature == "sha256=" + hmac.new(b"secret", body, hashlib.sha256).hexdigest()


def test_a_short_token_is_refused():
    with pytest.raises(ei.errors.OptionsError, match="too short"):
        attrs.evolve(ServerOptions(), token="short")
