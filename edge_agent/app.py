"""The local HTTP interface: bytes in, status and JSON out; nothing is decided about questions.

    POST /v1/answer                 a question; answers when it is settled
    GET  /v1/answers/{request_id}   a stored answer, or 202 while it is pending
    GET  /healthz  /readyz  /metrics  /openapi.json  /docs

Inputs: HTTP requests, an `EdgeAgent`. Output: an ASGI application. Neighbours: `service` serves it,
`admission` keeps web pages out, `http_messages` describes the bodies, `documentation` draws /docs.
Bodies are read piece by piece against a bound and a deadline, and only `max_posts` questions wait
at once; health and metrics have no such bound, so that they can be looked at when it is reached.
Every refusal is JSON with a stable `error` code and a `reason` that never quotes the question.
Whatever is said to a question has its id in the header `X-Request-ID`, as its log lines have.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from broker.log import SafeLog
from broker.tracing import Span, finish
from edge_agent.admission import check_body_type, check_host
from edge_agent.agent import EdgeAgent
from edge_agent.documentation import draw_documentation
from edge_agent.ending import describe_fault
from edge_agent.errors import (
    BodyTooLarge,
    BodyTooSlow,
    ConflictingQuestion,
    EdgeError,
    NotAccepting,
    OutboxError,
    QuestionRefused,
    QueueFull,
    UnknownRequest,
)
from edge_agent.http_messages import (
    ANSWER_RESPONSES,
    POST_RESPONSES,
    QUESTION_HEADERS,
    REQUEST_ID_HEADER,
    AnswerBody,
    question_schema,
    read_question,
    renamed,
    request_id_of,
)
from edge_agent.questions import FinalAnswer, Outcome, Question

_log = SafeLog(__name__)


def create_app(agent: EdgeAgent, *, clock: Callable[[], float] = time.time) -> ASGIApp:
    """The application around one agent; `clock` gives unix seconds."""
    app = FastAPI(
        title="ELMA edge agent",
        version="1",
        description="Answers questions about a passage, on the device when it can.",
        docs_url=None,
        redoc_url=None,
        # Its own would log messages of exceptions, which can quote a question; ours are enough.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    _add_question_routes(app, agent, clock)
    _add_service_routes(app, agent)

    @app.exception_handler(EdgeError)
    async def refuse(request: Request, error: EdgeError) -> Response:
        return _refusal(agent, error, getattr(request.state, "request_id", None))

    @app.exception_handler(Exception)
    async def refuse_unforeseen(_request: Request, _error: Exception) -> Response:
        return _error_response(500, "internal", "the agent failed; its log says why")

    @app.exception_handler(HTTPException)
    async def refuse_route(_request: Request, error: HTTPException) -> Response:
        code = {404: "no_such_page", 405: "method_not_allowed"}.get(error.status_code, "refused")
        return _error_response(
            error.status_code, code, str(error.detail), dict(error.headers or {})
        )

    return _Guard(app)


def _add_question_routes(app: FastAPI, agent: EdgeAgent, clock: Callable[[], float]) -> None:
    settings = agent.settings
    posts = _Posts(settings.http.max_posts)

    @app.post(
        "/v1/answer",
        response_model=AnswerBody,
        response_model_exclude_unset=True,
        responses=POST_RESPONSES,
        summary="Ask a question about a passage",
        openapi_extra={"requestBody": question_schema(settings), "parameters": QUESTION_HEADERS},
    )
    async def answer(request: Request) -> Response:
        request.state.request_id = request_id_of(request.headers)
        check_host(request.headers, settings.http)
        check_body_type(request.headers)
        with posts.one_more(), _traced(agent, request) as span:
            response = await _answer(agent, request, clock, span)
            if span is not None:
                span.set({"http_status": response.status_code})
            return response

    @app.get(
        "/v1/answers/{request_id}",
        response_model=AnswerBody,
        response_model_exclude_unset=True,
        responses=ANSWER_RESPONSES,
        summary="Fetch a stored answer",
    )
    async def stored_answer(request: Request, request_id: str) -> Response:
        check_host(request.headers, settings.http)
        return await run_in_threadpool(_stored_answer, agent, request_id)


def _add_service_routes(app: FastAPI, agent: EdgeAgent) -> None:
    @app.get("/healthz", summary="State of the agent", response_model=None)
    async def healthz() -> Response:
        health = agent.health()
        return JSONResponse(health, 200 if health["status"] == "ok" else 503)

    @app.get("/readyz", summary="Whether a question would be read at once", response_model=None)
    async def readyz() -> Response:
        return JSONResponse({"is_ready": agent.is_ready}, 200 if agent.is_ready else 503)

    @app.get("/metrics", summary="Metrics for Prometheus", response_model=None)
    async def metrics() -> Response:
        # Not in the pool, where it would wait behind all questions.
        return Response(
            agent.metrics.as_text(), media_type="text/plain; version=0.0.4; charset=utf-8"
        )

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(draw_documentation(app.openapi()))


async def _answer(
    agent: EdgeAgent, request: Request, clock: Callable[[], float], span: Span | None
) -> Response:
    """Read the question, have it answered, and say so under its id."""
    created, http = clock(), agent.settings.http
    body = await _read_body(request, http.max_body_bytes, http.body_seconds)
    question, is_named = read_question(
        body, agent.settings, created=created, request_id=request.state.request_id
    )
    try:
        request.state.request_id = question.request_id
        future = await run_in_threadpool(agent.ask, question, span)
    except ConflictingQuestion:
        if is_named:
            raise
        question = renamed(question)
        request.state.request_id = question.request_id
        future = await run_in_threadpool(agent.ask, question, span)
    return await _wait_for_answer(agent, question, future, clock)


@contextmanager
def _traced(agent: EdgeAgent, request: Request) -> Iterator[Span | None]:
    """The span of one request at the door, where there are traces; ended with what it came to."""
    if agent.traces is None:
        yield None
        return
    span = agent.traces.begin_request(request.headers.get("traceparent"), request.url.path)
    try:
        yield span
    except BaseException as error:
        finish(span, getattr(error, "code", type(error).__name__))
        raise
    finally:
        finish(span, request_id=request.state.request_id)


async def _read_body(request: Request, max_bytes: int, seconds: float) -> bytes:
    """The whole body; refused before it is read where its length is declared."""
    too_large = BodyTooLarge(f"the body has more than {max_bytes} bytes; send a shorter passage")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise too_large
    pieces, size = [], 0
    try:
        async with asyncio.timeout(seconds):
            async for piece in request.stream():
                size += len(piece)
                if size > max_bytes:
                    raise too_large
                pieces.append(piece)
    except TimeoutError as error:
        raise BodyTooSlow(f"the body did not arrive within {seconds:g} seconds") from error
    return b"".join(pieces)


async def _wait_for_answer(
    agent: EdgeAgent, question: Question, future: Future[Outcome], clock: Callable[[], float]
) -> Response:
    """The outcome as it comes; a word that it is still pending some time after the deadline."""
    wait_seconds = question.deadline - clock() + agent.settings.answer_grace_seconds
    wrapped = asyncio.wrap_future(future)
    # Looked at even if nobody waits any more: asyncio complains of an error that nobody saw.
    wrapped.add_done_callback(lambda done: done.cancelled() or done.exception())
    try:
        # Shielded: one who stops waiting must not cancel the answer of another.
        outcome = await asyncio.wait_for(asyncio.shield(wrapped), max(wait_seconds, 0.0))
    except TimeoutError:
        return _pending_response(agent, question.request_id)
    return _outcome_response(outcome)


def _stored_answer(agent: EdgeAgent, request_id: str) -> Response:
    entry, _ = agent.find(request_id)
    if entry.outcome is None:
        return _pending_response(agent, request_id)
    return _outcome_response(entry.outcome)


def _outcome_response(outcome: Outcome) -> Response:
    status = 200 if isinstance(outcome, FinalAnswer) else 500
    return JSONResponse(outcome.as_json(), status, {REQUEST_ID_HEADER: outcome.request_id})


def _pending_response(agent: EdgeAgent, request_id: str) -> Response:
    _, provisional = agent.find(request_id)
    document = {
        "request_id": request_id,
        "status": "pending",
        "provisional": None if provisional is None else provisional.as_json(),
    }
    headers = {
        "Location": f"/v1/answers/{request_id}",
        "Retry-After": "1",
        REQUEST_ID_HEADER: request_id,
    }
    return JSONResponse(document, 202, headers)


def _refusal(agent: EdgeAgent, error: EdgeError, request_id: str | None) -> Response:
    """The response to one of our errors, counted; `request_id` is None where nothing was asked."""
    response = _describe_refusal(agent, error, request_id)
    if request_id is not None:
        response.headers[REQUEST_ID_HEADER] = request_id
    return response


def _describe_refusal(agent: EdgeAgent, error: EdgeError, request_id: str | None) -> Response:
    if isinstance(error, UnknownRequest):
        return _error_response(error.status, error.code, str(error))
    if isinstance(error, OutboxError):
        return _error_response(503, "outbox", "the agent cannot use its outbox; its log says why")
    if not isinstance(error, QuestionRefused):
        return _error_response(500, "internal", "the agent failed; its log says why")
    agent.metrics.refused.labels(error.code).inc()
    _log.info("question_refused", request_id=request_id, code=error.code)
    headers = {}
    if isinstance(error, QueueFull):
        headers["Retry-After"] = str(math.ceil(error.retry_after_seconds))
    if isinstance(error, NotAccepting):
        headers["Retry-After"] = "5"
    if isinstance(error, BodyTooLarge | BodyTooSlow):
        headers["Connection"] = "close"
    return _error_response(error.status, error.code, str(error), headers)


def _error_response(
    status: int, code: str, reason: str, headers: dict[str, str] | None = None
) -> Response:
    return JSONResponse({"error": code, "reason": reason}, status, headers)


class _Posts:
    """Counts the questions on open connections; used on the event loop only."""

    def __init__(self, bound: int) -> None:
        self._bound, self._count = bound, 0

    @contextmanager
    def one_more(self) -> Iterator[None]:
        """A place for one of them. Raises QueueFull."""
        if self._count >= self._bound:
            raise QueueFull(
                f"{self._count} questions wait for an answer, which is the bound "
                "`http.max_posts`; ask again later",
                retry_after_seconds=1,
            )
        self._count += 1
        try:
            yield
        finally:
            self._count -= 1


class _Guard:
    """Keeps the traceback of what nobody foresaw out of the server's log.

    The framework has answered 500 by then and raises the error once more; its message could quote a
    question, so only its kind is logged.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        except Exception as error:
            _log.error("http_failed", error=describe_fault(error))
