"""Passwords and TLS against a real mosquitto, with certificates made for the test.

mosquitto only: the embedded broker is for one machine and has neither here.
"""

from __future__ import annotations

import json
import queue
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from broker.errors import BrokerSettingsError, ConnectFailed
from broker.exchange import Publication, Subscription
from broker.session import Session
from broker.settings import BrokerSettings
from protocol.topics import manifest_subscription, rollout_subscription
from tests.conftest import find_program

WAIT_SECONDS = 15.0
Connect = Callable[..., Session]


@pytest.fixture
def serve(
    mosquitto_program: Path, tmp_path: Path, free_port: Callable[[], int]
) -> Iterator[Callable[[str], int]]:
    """Runs mosquitto with further configuration lines; returns its port."""
    started: list[subprocess.Popen[bytes]] = []

    def run(lines: str) -> int:
        port = free_port()
        configuration = tmp_path / "secure.conf"
        configuration.write_text(f"user root\nlistener {port} 127.0.0.1\n{lines}\n")
        log = (tmp_path / "secure.log").open("wb")
        started.append(
            subprocess.Popen([mosquitto_program, "-c", configuration], stdout=log, stderr=log)
        )
        return port

    yield run
    for process in started:
        process.terminate()
        process.wait(WAIT_SECONDS)


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    """A folder with an authority, a server certificate for 127.0.0.1 and a client certificate."""
    program = find_program("openssl", package="openssl")

    def openssl(*arguments: str) -> None:
        subprocess.run([program, *arguments], cwd=tmp_path, check=True, capture_output=True)

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    for name in ("ca", "other-ca"):
        openssl(
            *("req", "-x509", *curve, "-subj", f"/CN={name}"),
            *("-keyout", f"{name}.key", "-out", f"{name}.pem"),
        )
    (tmp_path / "san").write_text("subjectAltName=IP:127.0.0.1\n")
    for name in ("server", "client"):
        openssl(
            *("req", "-new", *curve[:5], "-subj", f"/CN={name}"),
            *("-keyout", f"{name}.key", "-out", f"{name}.csr"),
        )
        openssl(
            *("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key"),
            *("-CAcreateserial", "-days", "2", "-extfile", "san", "-out", f"{name}.pem"),
        )
    return tmp_path


def password_file(folder: Path, content: str) -> Path:
    """A password file for its owner only."""
    path = folder / "password"
    path.write_text(content)
    path.chmod(0o600)
    return path


def failure_text(session: Session, wanted: str) -> str:
    """The session's failure, once it is the wanted one (the broker may still be starting)."""
    deadline = time.monotonic() + WAIT_SECONDS
    while wanted not in str(session.failure):
        assert time.monotonic() < deadline, session.failure
        time.sleep(0.01)
    assert isinstance(session.failure, ConnectFailed)
    return str(session.failure)


def test_the_right_password_connects_and_a_wrong_one_is_refused(
    serve: Callable[[str], int], tmp_path: Path, connect: Connect
) -> None:
    users = tmp_path / "users"
    tool = shutil.which("mosquitto_passwd") or "/usr/bin/mosquitto_passwd"
    subprocess.run([tool, "-b", "-c", users, "kitchen", "open sesame"], check=True)
    port = serve(f"allow_anonymous false\npassword_file {users}")
    secret = password_file(tmp_path, "open sesame\n")
    settings = BrokerSettings(port=port, username="kitchen", password_file=secret)
    assert connect(settings, "edge-1").is_connected
    secret.write_text("open barley")
    refused = failure_text(connect(settings, "edge-2", wait=False), "refused")
    assert "barley" not in refused


def test_tls_verifies_the_broker_and_shows_our_certificate(
    serve: Callable[[str], int], certificates: Path, connect: Connect
) -> None:
    port = serve(
        f"cafile {certificates}/ca.pem\ncertfile {certificates}/server.pem\n"
        f"keyfile {certificates}/server.key\nrequire_certificate true\n"
        "use_identity_as_username true"
    )
    ours = {
        "tls_certificate_file": certificates / "client.pem",
        "tls_key_file": certificates / "client.key",
    }
    good = BrokerSettings(port=port, tls_ca_file=certificates / "ca.pem", **ours)
    assert connect(good, "edge-1").is_connected
    stranger = BrokerSettings(port=port, tls_ca_file=certificates / "other-ca.pem", **ours)
    failure_text(connect(stranger, "edge-2", wait=False), "certificate verify failed")
    wrong_name = good.model_copy(update={"host": "localhost"})
    failure_text(connect(wrong_name, "edge-3", wait=False), "certificate verify failed")
    nobody = BrokerSettings(port=port, tls_ca_file=certificates / "ca.pem")
    session = connect(nobody, "edge-4", wait=False)
    failure_text(session, "broker")
    assert not session.is_connected


def test_tls_files_that_cannot_be_used_are_named_at_the_start(certificates: Path) -> None:
    good = {
        "tls_ca_file": certificates / "ca.pem",
        "tls_certificate_file": certificates / "client.pem",
        "tls_key_file": certificates / "client.key",
    }
    assert BrokerSettings(**good).tls_context() is not None
    for setting in good:
        missing = BrokerSettings(**{**good, setting: certificates / "none.pem"})
        with pytest.raises(BrokerSettingsError, match=rf"{setting} .*none\.pem"):
            Session(missing, "edge-1").start()
    (certificates / "noise").write_text("noise")
    for setting in good:
        broken = BrokerSettings(**{**good, setting: certificates / "noise"})
        with pytest.raises(BrokerSettingsError, match=f"{setting} .*noise"):
            broken.tls_context()
    swapped = BrokerSettings(**{**good, "tls_key_file": certificates / "server.key"})
    with pytest.raises(BrokerSettingsError, match="tls_key_file"):
        swapped.tls_context()


def test_a_role_that_forbids_a_topic_refuses_its_subscription_and_the_session_goes_on(
    serve: Callable[[str], int], tmp_path: Path, connect: Connect
) -> None:
    """Dynamic security, as in the field: an edge may read its own channel's blobs and no more."""
    plugin = next(Path("/usr/lib").glob("*/mosquitto_dynamic_security.so"), None)
    if plugin is None:
        pytest.skip("mosquitto's dynamic security plugin is not where Debian puts it")
    rule = {"acltype": "subscribePattern", "topic": "elma/v1/model/stable/#", "allow": True}
    everything_else = {
        "publishClientSend": True,
        "publishClientReceive": True,
        "subscribe": False,
        "unsubscribe": True,
    }
    rules = tmp_path / "rules.json"
    rules.write_text(
        json.dumps(
            {
                "defaultACLAccess": everything_else,
                "clients": [],
                "groups": [{"groupname": "all", "clients": [], "roles": [{"rolename": "edge"}]}],
                "roles": [{"rolename": "edge", "acls": [rule]}],
                "anonymousGroup": "all",
            }
        )
    )
    port = serve(f"allow_anonymous true\nplugin {plugin}\nplugin_opt_config_file {rules}")
    settings = BrokerSettings(port=port)
    edge = connect(
        settings, "edge-1", subscriptions=[Subscription(manifest_subscription("stable"))]
    )
    epoch = edge.epoch
    refused: queue.Queue[str] = queue.Queue()
    edge.on_subscription_refused = refused.put
    edge.subscribe(Subscription(rollout_subscription("beta")))
    assert refused.get(timeout=WAIT_SECONDS) == "elma/v1/model/beta/rollout"
    edge.subscribe(Subscription(rollout_subscription("stable")))
    order = Publication(rollout_subscription("stable"), b"order", retain=True)
    connect(settings, "publisher").publish(order)
    delivery = edge.receive(WAIT_SECONDS)
    assert delivery is not None
    assert delivery.payload == b"order"
    assert refused.empty()
    assert edge.epoch == epoch
