"""Runs the broker of a secured folder as a child process, as `run` does for one machine.

Input: a `SecuredFolder`. Output: a `RunningBroker` that has shown its certificate. Neighbours:
`run` keeps the process, `secured` the folder.
"""

from __future__ import annotations

import socket
import ssl

from broker.errors import BrokerMissing, BrokerSettingsError
from broker.mosquitto import find_mosquitto
from broker.run import PROBE_SECONDS, RunningBroker
from broker.secured import SecuredFolder
from broker.settings import MAX_PACKET_BYTES, BrokerSettings


class SecuredBroker(RunningBroker):
    """mosquitto with the files of a secured folder."""

    def __init__(self, folder: SecuredFolder) -> None:
        super().__init__(
            "mosquitto", folder.broker_files, folder.control_host, folder.port, MAX_PACKET_BYTES
        )
        self.folder = folder

    def settings(self) -> BrokerSettings:
        """How the operator reaches it."""
        return self.folder.operator_settings()

    @property
    def _who_answers(self) -> str:
        # It has shown a certificate of this folder's authority.
        configuration = self.folder.configuration_file
        return (
            f"a broker of {self.folder.path}, which runs already, or was left by an `elma broker "
            f"run` that was killed (pkill -f {configuration})"
        )

    def _command(self) -> list[str]:
        program = find_mosquitto()
        if program is None:
            raise BrokerMissing("mosquitto is not installed; run `apt-get install mosquitto`")
        return [str(program), "-c", str(self.folder.configuration_file)]

    def _is_answering(self) -> bool:
        """Whether a broker there shows a certificate of the right authority."""
        context = self.settings().tls_context()
        if context is None:
            raise BrokerSettingsError(f"{self.folder.path}: the operator has no TLS files")
        try:
            with (
                socket.create_connection((self.host, self.port), timeout=PROBE_SECONDS) as plain,
                context.wrap_socket(plain, server_hostname=self.host) as connection,
            ):
                return connection.version() is not None
        except (OSError, ssl.SSLError):
            return False


def run_secured(folder: SecuredFolder) -> SecuredBroker:
    """Start it and return it when it answers. Raises BrokerMissing or BrokerStartFailed."""
    broker = SecuredBroker(folder)
    broker.start()
    return broker
