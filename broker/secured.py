"""The folder of a broker for a public address: certificates, rights, limits and mosquitto's file.

    folder = make_secured(Path("broker"), ["broker.example"], now=datetime.now(UTC))
    folder = SecuredFolder.load(Path("broker"))

    broker.json                         what the other verbs need to know
    authority/authority.pem, authority-key.pem, issued/NAME.pem     may be kept elsewhere
    operator/client.pem, client-key.pem, authority.pem              who may enrol and revoke
    mosquitto/mosquitto.conf, dynamic-security.json, server.pem, server-key.pem,
              members-authority.pem, revoked.pem, data/             all that the broker itself needs

Inputs: names, own certificates if any. Neighbours: `authority` makes certificates, `roles` rights,
`mosquitto_files` the configuration; `enrolment` adds and removes members; `secured_run` runs it.
"""

from __future__ import annotations

import getpass
import json
import os
import pwd
import shutil
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from broker.authority import Authority, CertifiedKey
from broker.errors import EnrolmentError
from broker.mosquitto_files import MosquittoVersion, installed_version, secured_configuration
from broker.roles import OPERATOR_NAME, Member, first_access
from broker.secret_files import make_folder, read_file, read_secret, write_file, write_secret
from broker.settings import BrokerSettings

DEFAULT_PORT = 8883
DESCRIPTION_NAME = "broker.json"
LOCAL_HOSTS = ("localhost", "127.0.0.1")
"""Our own server certificate holds them too, so that the operator may sit beside the broker."""
AUTHORITY_NAME = "authority.pem"
CERTIFICATE_NAME = "client.pem"
KEY_NAME = "client-key.pem"
OPERATOR = Member("operator", OPERATOR_NAME)
MAX_DESCRIPTION_BYTES = 64 * 1024


@dataclass(frozen=True)
class OwnCertificates:
    """Files in PEM from elsewhere. A server certificate comes with its key and its authority's
    certificate; an authority for the members comes with its key."""

    server: Path | None = None
    server_key: Path | None = None
    server_authority: Path | None = None
    authority: Path | None = None
    authority_key: Path | None = None

    def __post_init__(self) -> None:
        parts = (self.server, self.server_key, self.server_authority)
        if any(parts) and not all(parts):
            raise EnrolmentError(
                "a server certificate of one's own is three files: the certificate with its chain, "
                "its key, and the authority that clients verify it by"
            )
        if (self.authority is None) != (self.authority_key is None):
            raise EnrolmentError("an authority of one's own is its certificate and its key")


@dataclass(frozen=True)
class SecuredFolder:
    """A folder that `make_secured` made. `hosts`: how clients reach the broker, the first first.

    `control_host` is how the operator reaches it from the broker's own machine.
    """

    path: Path
    hosts: tuple[str, ...]
    port: int
    control_host: str
    mosquitto: MosquittoVersion
    user: str

    @staticmethod
    def load(path: Path) -> SecuredFolder:
        """Read `broker.json`. Raises EnrolmentError."""
        file = path / DESCRIPTION_NAME
        if not file.exists():
            raise EnrolmentError(
                f"{path} is no folder of a secured broker; `elma broker init` makes one"
            )
        try:
            document = json.loads(read_file(file)[:MAX_DESCRIPTION_BYTES])
            return SecuredFolder(
                path=path.resolve(),
                hosts=tuple(str(host) for host in document["hosts"]),
                port=int(document["port"]),
                control_host=str(document["control_host"]),
                mosquitto=document["mosquitto"],
                user=str(document["user"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise EnrolmentError(f"{file} is damaged: {error}") from error

    @property
    def broker_files(self) -> Path:
        """All that the broker itself reads and writes."""
        return self.path / "mosquitto"

    @property
    def configuration_file(self) -> Path:
        """What mosquitto is started with."""
        return self.broker_files / "mosquitto.conf"

    @property
    def access_file(self) -> Path:
        """Who may do what; the running broker writes it itself."""
        return self.broker_files / "dynamic-security.json"

    @property
    def revocation_file(self) -> Path:
        """The certificates that count no more."""
        return self.broker_files / "revoked.pem"

    @property
    def process_id_file(self) -> Path:
        """Where a running broker notes its process id."""
        return self.broker_files / "data" / "mosquitto.pid"

    @property
    def issued_folder(self) -> Path:
        """The certificates of the members, one file each."""
        return self.path / "authority" / "issued"

    @property
    def server_authority(self) -> bytes:
        """The certificate by which every client verifies the broker."""
        return read_file(self.path / "operator" / AUTHORITY_NAME)

    def authority(self) -> Authority:
        """The authority with its key. Raises EnrolmentError, also for a key open to others."""
        folder = self.path / "authority"
        key = folder / "authority-key.pem"
        if not key.exists():
            raise EnrolmentError(
                f"{key} is not there; bring the authority's key to enrol or revoke"
            )
        return Authority.load(read_file(folder / AUTHORITY_NAME), read_secret(key))

    def operator_settings(self, host: str | None = None) -> BrokerSettings:
        """How the operator connects. Raises EnrolmentError when its key is open to others."""
        folder = self.path / "operator"
        read_secret(folder / KEY_NAME)
        return BrokerSettings(
            host=host or self.control_host,
            port=self.port,
            username=OPERATOR.identity,
            tls_ca_file=folder / AUTHORITY_NAME,
            tls_certificate_file=folder / CERTIFICATE_NAME,
            tls_key_file=folder / KEY_NAME,
        )


def make_secured(
    path: Path,
    hosts: list[str],
    *,
    now: datetime,
    port: int = DEFAULT_PORT,
    listen: str | None = None,
    mosquitto: MosquittoVersion | None = None,
    user: str | None = None,
    own: OwnCertificates | None = None,
) -> SecuredFolder:
    """Make the folder. `listen` is the address to bind (all of them by default); `user` is whom
    mosquitto runs as; `mosquitto` None takes the form for the one on this machine. Raises
    EnrolmentError; a folder that is there already is left alone.
    """
    if path.exists() and any(path.iterdir()):
        raise EnrolmentError(f"{path} is not empty; a broker's folder is made once, in a new place")
    if not hosts:
        raise EnrolmentError("name at least one host by which clients reach the broker")
    own = own or OwnCertificates()
    folder = SecuredFolder(
        path=path.resolve(),
        hosts=tuple(hosts),
        port=port,
        control_host=hosts[0] if own.server else LOCAL_HOSTS[1],
        mosquitto=mosquitto or installed_version(),
        user=user or default_user(),
    )
    authority = _authority(own, hosts[0], now)
    server, server_authority = _server(own, authority, hosts, now)
    # The broker's user reaches its own files through the folder, and can list nothing.
    make_folder(folder.path, mode=0o711)
    for inner in (folder.broker_files, folder.path / "authority", folder.path / "operator"):
        make_folder(inner)
    make_folder(folder.issued_folder)
    make_folder(folder.process_id_file.parent)
    write_file(folder.path / "authority" / AUTHORITY_NAME, authority.certificate)
    write_secret(folder.path / "authority" / "authority-key.pem", authority.key)
    _write_operator(folder, authority.issue_client(OPERATOR.identity, now), server_authority)
    write_file(folder.broker_files / "server.pem", server.certificate)
    write_secret(folder.broker_files / "server-key.pem", server.key)
    write_file(folder.broker_files / "members-authority.pem", authority.certificate)
    write_file(folder.revocation_file, authority.revocation_list((), now))
    access = json.dumps(first_access(OPERATOR), indent=1).encode()
    write_secret(folder.access_file, access)
    write_file(
        folder.configuration_file,
        secured_configuration(
            folder.broker_files,
            port=port,
            listen=listen,
            version=folder.mosquitto,
            user=folder.user,
        ).encode(),
    )
    _hand_over(folder)
    description = {**asdict(folder), "elma": "secured-broker", "hosts": list(hosts)}
    del description["path"]
    write_file(folder.path / DESCRIPTION_NAME, (json.dumps(description, indent=1) + "\n").encode())
    return folder


def default_user() -> str:
    """Whom mosquitto runs as: its own user where root sets it up and there is one, else us."""
    if os.geteuid() == 0:
        try:
            return pwd.getpwnam("mosquitto").pw_name
        except KeyError:
            pass
    return getpass.getuser()


def _authority(own: OwnCertificates, host: str, now: datetime) -> Authority:
    if own.authority is not None and own.authority_key is not None:
        return Authority.load(read_file(own.authority), read_secret(own.authority_key))
    return Authority.make(f"ELMA authority of {host}"[:64], now)


def _server(
    own: OwnCertificates, authority: Authority, hosts: list[str], now: datetime
) -> tuple[CertifiedKey, bytes]:
    """The broker's certificate and key, and the certificate that clients verify it by."""
    if own.server is None or own.server_key is None or own.server_authority is None:
        names = [*hosts, *(host for host in LOCAL_HOSTS if host not in hosts)]
        return authority.issue_server(names, now), authority.certificate
    pair = CertifiedKey.of_files(read_file(own.server), read_secret(own.server_key))
    return pair, read_file(own.server_authority)


def _write_operator(folder: SecuredFolder, pair: CertifiedKey, server_authority: bytes) -> None:
    own = folder.path / "operator"
    write_file(own / CERTIFICATE_NAME, pair.certificate)
    write_secret(own / KEY_NAME, pair.key)
    write_file(own / AUTHORITY_NAME, server_authority)
    write_file(folder.issued_folder / f"{OPERATOR.identity}.pem", pair.certificate)


def _hand_over(folder: SecuredFolder) -> None:
    """Give the broker's files to the user that mosquitto runs as."""
    if folder.user == getpass.getuser():
        return
    try:
        for path in (folder.broker_files, *folder.broker_files.rglob("*")):
            shutil.chown(path, folder.user)
    except (OSError, LookupError) as error:
        raise EnrolmentError(
            f"cannot give {folder.broker_files} to the user {folder.user!r} ({error}); "
            "run this as root, or leave --user out"
        ) from error
