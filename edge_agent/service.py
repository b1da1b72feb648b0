"""An edge agent as a process: reader, agent and HTTP server brought up and down in the right order.

Input: `EdgeSettings`. Output: a process that serves until SIGTERM or SIGINT, and answers questions
that are in hand before it ends. Neighbours: `elma edge run` calls `run_edge`; `agent`, `app`.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from types import FrameType

import uvicorn

from broker.exchange import Subscription
from broker.log import SafeLog
from broker.notify import ServiceManager
from broker.session import Session
from broker.settings import PACKET_OVERHEAD_BYTES
from broker.tracing import CLOSING_SECONDS, Tracing, open_tracing
from edge_agent.agent import EdgeAgent
from edge_agent.app import create_app
from edge_agent.cloud_messages import RequestSealer, presence
from edge_agent.cloud_side import CloudAccess, Followed
from edge_agent.errors import CannotCompute, ListenError, SettingsError
from edge_agent.link import Link
from edge_agent.release_start import begin, open_store
from edge_agent.settings import EdgeSettings
from edge_agent.slow_clients import PatientProtocol
from protocol.key_files import load_edge_keys, load_pool_public
from protocol.live_keys import LiveKeys
from protocol.topics import answer_subscription, presence_subscription
from reader.memory import keep_small

SESSION_EXPIRY_SECONDS = 3_600
RECEIVE_MAXIMUM = 32
DELIVERIES_BOUND_BYTES = 64 * 1024 * 1024
LARGEST_ANSWER_BYTES = 1024 * 1024
"""128 windows of 20 spans are half of it; whatever is larger is not for us."""
DELIVERIES_BOUND = 256

_log = SafeLog(__name__)


def run_edge(settings: EdgeSettings) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises SettingsError, ListenError, OutboxError, CannotCompute, `reader.errors.ModelFolderError`,
    `protocol.errors.KeyFileError`, `broker.errors.BrokerSettingsError` or
    `broker.tracing.TracingExtraMissing` before it serves: a reader that fails on its first words
    is never said to be ready, and no other engine takes its place unasked.
    """
    keep_small()
    with listen(settings) as listener:
        tracing = open_tracing(settings.tracing, service="elma-edge", name=settings.name)
        agent = make_agent(settings, tracing)
        agent.start()
        try:
            agent.wait_begun()
        except CannotCompute:
            agent.stop()
            raise
        EdgeServer(agent, settings).run(sockets=[listener])
        if tracing is not None:
            tracing.close(CLOSING_SECONDS)


def make_agent(settings: EdgeSettings, tracing: Tracing | None = None) -> EdgeAgent:
    """The agent that the settings describe, its keys and weights loaded, not started."""
    cloud = _cloud_access(settings)
    store = open_store(settings)
    start = begin(settings, store)
    followed = None if store is None else Followed(store, start.given_up)
    return EdgeAgent(settings, start.reader, cloud=cloud, followed=followed, tracing=tracing)


def listen(settings: EdgeSettings) -> socket.socket:
    """Bind the HTTP address, before anything that takes long. Raises ListenError."""
    host, port = settings.http.host, settings.http.port
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=512)
    except OSError as error:
        raise ListenError(
            f"HTTP address {host}:{port} cannot be used ({error}); set another http.port"
        ) from error


class EdgeServer(uvicorn.Server):
    """uvicorn, which stops the agent together with itself: no new questions, old ones answered."""

    def __init__(self, agent: EdgeAgent, settings: EdgeSettings) -> None:
        super().__init__(
            uvicorn.Config(
                create_app(agent),
                lifespan="off",
                log_config=None,
                access_log=False,
                http=PatientProtocol,
                # The agent gives up its waiting questions first, so that they get a clear answer.
                timeout_graceful_shutdown=int(settings.shutdown_seconds) + 5,
            )
        )
        self._agent = agent
        self._manager = ServiceManager()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Say where the agent listens, with the real port where it was 0."""
        await super().startup(sockets)
        health = self._agent.health()
        computing = health["engine"] or {}
        for listener in sockets or []:
            host, port = listener.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            _log.info(
                "edge_listening",
                url=f"http://{shown}:{port}",
                name=self._agent.settings.name,
                model=self._agent.local.model if health["model"] else "none",
                engine=computing.get("name"),
                precision=computing.get("precision"),
                threads=computing.get("threads"),
                edge_layers=health["edge_layers"],
            )
        self._manager.ready()

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second, on the loop that serves HTTP: it lives, and so does the agent."""
        self._manager.feed(self._agent.is_sound)
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, _frame: FrameType | None) -> None:
        """A signal: refuse new questions from this moment on; a second Ctrl-C ends at once.

        Not uvicorn's own way, which raises the signal again after a clean stop.
        """
        self._agent.begin_stop()
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening and stop the agent at the same time."""
        self._manager.stopping()
        stopping = asyncio.get_running_loop().run_in_executor(None, self._agent.stop)
        await super().shutdown(sockets)
        await stopping


def _cloud_access(settings: EdgeSettings) -> CloudAccess | None:
    """The session and the keys, loaded now; None where no cloud is configured."""
    broker, offload = settings.broker, settings.offload
    if broker is None or offload.edge_key_file is None or offload.pool_public_key_file is None:
        return None
    edge_keys = load_edge_keys(offload.edge_key_file)
    pool = LiveKeys(
        offload.pool_public_key_file,
        load_pool_public,
        on_read=lambda key: _log.info("pool_key_read", pool_key=key.key_id),
        on_failure=lambda error: _log.error("pool_key_not_read", why=str(error)),
    )
    if edge_keys.edge != settings.name:
        raise SettingsError(
            f"{offload.edge_key_file} is the key of edge {edge_keys.edge!r}, but `name` is "
            f"{settings.name!r}; set the name the key was made for"
        )
    session = Session(
        broker,
        broker.username or f"edge-{settings.name}",
        subscriptions=[
            Subscription(answer_subscription(settings.name)),
            Subscription(presence_subscription("worker")),
        ],
        receive_maximum=RECEIVE_MAXIMUM,
        clean_start=False,
        session_expiry_seconds=SESSION_EXPIRY_SECONDS,
        will=presence(settings.name, is_online=False),
        birth=presence(settings.name, is_online=True),
        queue_bound=DELIVERIES_BOUND,
        queue_bound_bytes=DELIVERIES_BOUND_BYTES,
        largest_packet_bytes=LARGEST_ANSWER_BYTES + PACKET_OVERHEAD_BYTES,
    )
    return CloudAccess(Link(session), RequestSealer(edge_keys, pool))
