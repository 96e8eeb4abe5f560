"""Devices come in with a token, change their keys and are thrown out, over HTTP."""

from __future__ import annotations

import pytest

from edgeinfer.cli import main
from edgeinfer.fleet.device.enrolment import EnrolmentToken, enroll, replace_key
from edgeinfer.fleet.device.http_transport import HttpTransport
from edgeinfer.fleet.device.identity import Identity
from edgeinfer.fleet.device.trust import TrustedRepository
from edgeinfer.fleet.errors import AgentError, TransportError, TrustError
from edgeinfer.fleet.operator.store import enrolment as store
from tests.fleet.served import report, served


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with served(tmp_path_factory.mktemp("enrolment") / "fleet") as found:
        yield found


def send(server, identity, sequence):
    document = report(identity.device, sequence, identity.key_bytes, incarnation=identity.incarnation)
    return server.post(f"/reports/{identity.device}", document)


def test_a_token_makes_a_member_with_a_root_of_trust(server, tmp_path):
    token = server.fleet.devices.token("cam", device_class="orin", site="berlin", labels={"line": "3"})
    identity = enroll(tmp_path / "edge", server.url, token)
    assert identity == Identity.load(tmp_path / "edge")
    assert (identity.device, identity.device_class, identity.incarnation) == ("cam", "orin", 1)
    TrustedRepository(tmp_path / "edge" / "metadata", server.url, root=None).refresh()
    assert send(server, identity, 1) == (200, {"accepted": 1, "refused": []})
    row = server.row("cam")
    assert (row["site"], row["labels"], row["flag"]) == ("berlin", '{"line":"3"}', "")
    assert (tmp_path / "edge" / "device.json").stat().st_mode & 0o077 == 0


def test_a_token_works_once_and_its_second_use_is_flagged(server, tmp_path):
    token = server.fleet.devices.token("once")
    enroll(tmp_path / "one", server.url, token)
    with pytest.raises(AgentError, match="used before"):
        enroll(tmp_path / "two", server.url, token)
    assert server.row("once")["flag"] == "token used twice"
    assert any("once: a token that was used before came again" in line for line in server.audit())


def test_other_tokens_are_refused(server, tmp_path, monkeypatch):
    good = EnrolmentToken.parse(server.fleet.devices.token("other"))
    unknown = EnrolmentToken(secret="x" * 43, root_version=1, root_digest=good.root_digest)
    for text, match in ((str(unknown), "not known"), ("nonsense", "no token")):
        with pytest.raises(AgentError, match=match):
            enroll(tmp_path, server.url, text)
    replaced = server.fleet.devices.token("other")  # a new one makes those before void
    with pytest.raises(AgentError, match="not known"):
        enroll(tmp_path, server.url, str(good))
    expired = server.fleet.devices.token("other", lifetime=0)
    with pytest.raises(AgentError, match="not known"):
        enroll(tmp_path, server.url, replaced)
    with pytest.raises(AgentError, match="expired"):
        enroll(tmp_path, server.url, expired)
    assert server.row("other") is None


def test_a_server_with_another_root_gets_no_token(server, tmp_path):
    token = EnrolmentToken.parse(server.fleet.devices.token("careful"))
    forged = EnrolmentToken(secret=token.secret, root_version=1, root_digest="0" * 64)
    with pytest.raises(TrustError, match="root of trust"):
        enroll(tmp_path, server.url, str(forged))
    assert Identity.load(tmp_path) is None
    assert enroll(tmp_path, server.url, str(token)).device == "careful"


def test_keys_are_not_sent_in_the_clear(tmp_path):
    with pytest.raises(TransportError, match="HTTPS"):
        enroll(tmp_path, "http://fleet.example.org", f"{'x' * 43}.1.{'0' * 64}")


def test_a_reflashed_device_begins_a_new_life(server, tmp_path):
    first = enroll(tmp_path / "one", server.url, server.fleet.devices.token("again"))
    assert send(server, first, 50)[0] == 200
    second = enroll(tmp_path / "two", server.url, server.fleet.devices.token("again"))
    assert second.incarnation == 2
    assert server.row("again")["flag"] == "reflashed"
    before = server.logged("again")
    assert send(server, second, 1)[1]["refused"] == []
    assert server.logged("again") == before + 1  # though its sequence began again
    assert "not made with the key" in send(server, first, 51)[1]["refused"][0]["reason"]


def test_a_key_is_replaced_and_the_one_before_goes_on_for_a_while(server, tmp_path, monkeypatch):
    old = enroll(tmp_path, server.url, server.fleet.devices.token("renewed"))
    new = replace_key(tmp_path, server.url)
    assert new.key != old.key
    assert Identity.load(tmp_path) == new
    assert send(server, old, 1)[1]["refused"] == []  # it waited on the device
    assert send(server, new, 2)[1]["refused"] == []
    old.save(tmp_path)  # a thief of the old key
    with pytest.raises(AgentError, match="403"):
        replace_key(tmp_path, server.url)
    monkeypatch.setattr(store, "_earlier", lambda *_: None)  # a week later
    assert send(server, old, 3)[1]["refused"] != []
    assert send(server, new, 4)[1]["refused"] == []


def test_an_answer_that_is_lost_leaves_no_device_without_a_key(server, tmp_path, monkeypatch):
    from edgeinfer.fleet.device import enrolment

    enroll(tmp_path, server.url, server.fleet.devices.token("lossy"))
    real = enrolment._post

    def lost(*arguments):
        real(*arguments)
        raise TransportError("the answer was lost")

    monkeypatch.setattr(enrolment, "_post", lost)
    with pytest.raises(TransportError):
        replace_key(tmp_path, server.url)
    monkeypatch.undo()
    identity = Identity.load(tmp_path)
    assert send(server, identity, 1)[1]["refused"] == []
    renewed = replace_key(tmp_path, server.url)
    assert renewed.key != identity.key
    assert send(server, renewed, 2)[1]["refused"] == []
    assert not (tmp_path / "device.json.next").exists()


def test_a_revoked_device_is_out(server, tmp_path):
    identity = enroll(tmp_path, server.url, server.fleet.devices.token("stolen"))
    unused = server.fleet.devices.token("stolen")
    server.fleet.repository.storage.replace("desired/stolen.json", b"{}")
    assert server.fleet.devices.revoke("stolen")
    assert send(server, identity, 1)[0] == 403
    assert HttpTransport(server.url, device="stolen").desired(None) is None
    with pytest.raises(AgentError, match="403"):
        replace_key(tmp_path, server.url)
    with pytest.raises(AgentError, match="not known"):
        enroll(tmp_path, server.url, unused)
    assert not server.fleet.devices.revoke("never-there")


def test_the_command_line(server, tmp_path, capsys, monkeypatch):
    fleet = str(server.fleet.repository.keys.folder.parent)
    assert main(["fleet", "enroll", fleet, "cli-1", "--class", "orin", "--site", "s", "--label", "a=b"]) == 0
    token = tmp_path / "token"
    token.write_text(capsys.readouterr().out)
    assert (
        main(["agent", "enroll", str(tmp_path / "edge"), "--source", server.url, "--token", str(token)]) == 0
    )
    assert "this device is cli-1, life 1" in capsys.readouterr().out
    assert main(["agent", "replace-key", str(tmp_path / "edge"), "--source", server.url]) == 0
    key = tmp_path / "key"
    assert main(["fleet", "enroll", fleet, "cli-2", "--key-file", str(key)]) == 0
    assert bytes.fromhex(key.read_text()) == server.row("cli-2")["key"]
    assert key.stat().st_mode & 0o077 == 0
    assert main(["fleet", "revoke", fleet, "cli-1"]) == 0
    assert server.row("cli-1")["deleted_at"] is not None
