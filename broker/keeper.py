"""Keeps one identity connected: one `Connection` after another, on a thread of its own.

Inputs: settings, an identity, hooks. Outputs: the present connection, and calls to the hooks.
Neighbours: `session` owns it and is what callers see; `connection` is one life of a connection;
`tls_files` has the certificates that the next one shows.

It reconnects for ever, with a back-off that doubles and is drawn at random, so that a restarted
broker does not meet all clients at once. Certificates that have changed are taken up by a new
connection, at a moment when the present one is quiet, or after `QUIET_SECONDS` at any.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from broker.connection import Connection, Identity
from broker.errors import BrokerError, BrokerSettingsError, ConnectFailed, PublishError
from broker.exchange import Delivery, Publication
from broker.log import SafeLog
from broker.settings import BrokerSettings
from broker.subscribing import AddedFilters
from broker.tls_files import TlsFiles

WATCHDOG_SECONDS = 1.0
GOODBYE_SECONDS = 2.0
STABLE_SECONDS = 10.0
"""A connection that lived this long resets the back-off."""
QUIET_SECONDS = 30.0
QUIET_POLL_SECONDS = 0.01
_log = SafeLog("elma.broker")


@dataclass(frozen=True)
class Hooks:
    """What is called on the keeper's thread (`beginning`, `changed`) and on paho's (the others).

    `beginning`: a connection is about to be made. `changed`: it stands, or has ended. `stopping`,
    on the thread that stops it: there will be no other.
    """

    beginning: Callable[[], None]
    changed: Callable[[bool], None]
    stopping: Callable[[], None]
    delivered: Callable[[Delivery], None]
    subscription_refused: Callable[[str], None]
    callback_failed: Callable[[], None]


class Keeper:
    """`start` and `stop` once each; the properties are for any thread."""

    def __init__(
        self,
        settings: BrokerSettings,
        identity: Identity,
        birth: Publication | None,
        added: AddedFilters,
        hooks: Hooks,
        generator: random.Random | None = None,
    ) -> None:
        self.connection: Connection | None = None
        self.connections_total = 0
        self.broker_certificate_expires = 0.0
        """As the broker showed it last, in unix seconds; 0 without TLS."""
        self.epoch = 0
        self._settings, self._identity, self._birth = settings, identity, birth
        self._added, self._hooks = added, hooks
        self._tls_files = TlsFiles(settings, identity.client_id)
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._failure: BrokerError | None = None
        self._thread: threading.Thread | None = None
        # Jitter against crowds of clients, not a secret.
        self._generator = generator or random.Random()  # noqa: S311

    def start(self) -> None:
        """Begin to connect; returns at once. Raises BrokerSettingsError for unusable files."""
        client_id = self._identity.client_id
        if self._thread is not None:
            raise BrokerSettingsError(f"{client_id}: a session starts once; make a new one")
        self._settings.password()
        self._tls_files.load()
        self._thread = threading.Thread(
            target=self._keep_connected, name=f"elma-session-{client_id}", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Publish the will ourselves, disconnect, and end the thread. Idempotent."""
        if self.is_stopping or self._thread is None:
            return
        self._say(self._identity.will, GOODBYE_SECONDS)
        self._stopping.set()
        self._hooks.stopping()
        connection = self.connection
        if connection is not None:
            connection.abandon()
        if threading.current_thread() is not self._thread:
            patience = 4 * GOODBYE_SECONDS + 2 * self._settings.connect_timeout_seconds
            self._thread.join(patience)
            if self._thread.is_alive():
                _log.error("broker_session_did_not_stop", client=self._identity.client_id)

    @property
    def is_stopping(self) -> bool:
        """Whether it was told to stop."""
        return self._stopping.is_set()

    @property
    def is_running(self) -> bool:
        """Whether its thread lives."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def is_connected(self) -> bool:
        """Connected, with every subscription granted."""
        connection = self.connection
        return connection is not None and connection.is_ready

    @property
    def failure(self) -> BrokerError | None:
        """Why there is no connection, if that is known; None while connected."""
        return None if self.is_connected else self._failure

    def wait_connected(self, timeout_seconds: float) -> bool:
        """Whether it is connected, or becomes so within `timeout_seconds`."""
        with self._changed:
            return self._changed.wait_for(lambda: self.is_connected, timeout_seconds)

    def _keep_connected(self) -> None:
        """One connection after another until stopped."""
        delay_seconds = self._settings.reconnect_min_seconds
        while not self.is_stopping:
            began, was_wanted = time.monotonic(), False
            try:
                was_wanted = self._live_once()
            except BrokerError as error:
                self._note_failure(error)
            except Exception as error:
                _log.exception("broker_session_failed", client=self._identity.client_id)
                name = type(error).__name__
                self._note_failure(ConnectFailed(f"{self._identity.client_id}: {name}"))
            if was_wanted or time.monotonic() - began >= STABLE_SECONDS:
                delay_seconds = self._settings.reconnect_min_seconds
            if not was_wanted:
                self._stopping.wait(delay_seconds * self._generator.uniform(0.5, 1.5))
                delay_seconds = min(2 * delay_seconds, self._settings.reconnect_max_seconds)

    def _live_once(self) -> bool:
        """Connect, stay until the connection ends or the session stops, and clean up.

        Returns whether we ended it ourselves, to be followed by another at once.
        """
        connection = Connection(
            self._settings,
            self._tls_files.context(),
            replace(self._identity, stale_filters=self._added.begin_connection()),
            self.epoch + 1,
            self._hooks.delivered,
            self._hooks.callback_failed,
            self._hooks.subscription_refused,
        )
        self.epoch += 1
        self._hooks.beginning()
        self.connection = connection
        try:
            try:
                connection.open()
            finally:
                self._note_certificate(connection)
            self._added.note_connected()
            self.connections_total += 1
            self._failure = None
            _log.info("broker_connected", client=self._identity.client_id, epoch=self.epoch)
            self._say(self._birth, 0.0)
            self._tell(True)
            is_outdated = self._watch(connection)
            if connection.failure is not None and not self.is_stopping:
                self._note_failure(connection.failure)
            return is_outdated
        finally:
            connection.close()
            self.connection = None
            if connection.was_ready:
                self._tell(False)

    def _watch(self, connection: Connection) -> bool:
        """Return when it ends or we stop, and whether it should be replaced by a newer one."""
        while not self.is_stopping and not connection.wait_closed(WATCHDOG_SECONDS):
            if not self._tls_files.have_changed():
                continue
            end = time.monotonic() + QUIET_SECONDS
            while not connection.is_quiet and time.monotonic() < end and not self.is_stopping:
                if connection.wait_closed(QUIET_POLL_SECONDS):
                    return False
            _log.info("broker_reconnecting", client=self._identity.client_id, why="certificate")
            return not self.is_stopping
        return False

    def _say(self, publication: Publication | None, wait_seconds: float) -> None:
        """Publish our presence if we can; it only informs, so failing is no failure."""
        connection = self.connection
        if publication is None or connection is None:
            return
        try:
            receipt = connection.publish(publication)
        except PublishError as error:
            client_id = self._identity.client_id
            _log.info("broker_presence_not_published", client=client_id, why=str(error))
            return
        if wait_seconds > 0:
            receipt.wait(wait_seconds)

    def _note_certificate(self, connection: Connection) -> None:
        """What the broker showed, if it came so far: kept while it is away."""
        if connection.broker_certificate_expires:
            self.broker_certificate_expires = connection.broker_certificate_expires

    def _tell(self, connected: bool) -> None:
        """Wake who waits for a connection, and call the hook safely."""
        with self._changed:
            self._changed.notify_all()
        try:
            self._hooks.changed(connected)
        except Exception:
            self._hooks.callback_failed()
            _log.exception("broker_hook_failed", client=self._identity.client_id)

    def _note_failure(self, error: BrokerError) -> None:
        """Keep the reason for `failure`; log it when it is not the same as before."""
        if str(error) != str(self._failure):
            _log.warning("broker_not_connected", client=self._identity.client_id, why=str(error))
        self._failure = error
