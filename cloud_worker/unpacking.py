"""The windows of an opened request, with their decoded states, as the queue takes them.

Inputs: the windows as they crossed the wire, the reader that goes on with them. Output: windows
that wait for their next layer, or `RequestRefused` with the code that the edge is told. Neighbours:
`receive` calls it, `reader` decodes, `request_queue` describes a window that waits.
"""

from __future__ import annotations

from collections.abc import Sequence

from cloud_worker.errors import RequestRefused
from cloud_worker.held import HeldRequest
from cloud_worker.request_queue import Window, waiting_window
from protocol.messages import RequestWindow
from reader.arrays import FloatArray
from reader.codecs import TOKENS, decode_tokens
from reader.errors import StateError, StateShapeError, UnknownCodec
from reader.model import Reader


def waiting_windows(
    request: HeldRequest, windows: Sequence[RequestWindow], reader: Reader
) -> list[Window]:
    """The windows of a request, each with its decoded state. Raises RequestRefused."""
    return [
        waiting_window(
            request,
            reader.config,
            index=window.index,
            layer=window.from_layer,
            question_tokens=window.question_tokens,
            state=state,
        )
        for window, state in ((window, _decoded_state(window, reader)) for window in windows)
    ]


def _decoded_state(window: RequestWindow, reader: Reader) -> FloatArray:
    """The state `[T, H]` of a window that this reader can continue. Raises RequestRefused."""
    config = reader.config
    if window.from_layer >= config.layers:
        raise RequestRefused(
            "bad_state", f"window {window.index} is after layer {window.from_layer}, the last one"
        )
    if window.length_tokens > config.max_positions:
        raise RequestRefused(
            "bad_state", f"window {window.index} is longer than {config.max_positions} tokens"
        )
    if not 2 <= window.question_tokens <= window.length_tokens - 2:
        raise RequestRefused("bad_state", f"window {window.index} has no passage")
    try:
        if window.codec == TOKENS:
            return _embedded_tokens(window, reader)
        return reader.codecs.decode(
            window.codec, window.from_layer, window.state, window.length_tokens
        )
    except UnknownCodec as error:
        raise RequestRefused("unknown_codec", str(error)) from error
    except StateError as error:
        raise RequestRefused("bad_state", f"window {window.index}: {error}") from error


def _embedded_tokens(window: RequestWindow, reader: Reader) -> FloatArray:
    """The state after layer 0 of a window that came as token ids. Raises StateError."""
    if window.from_layer != 0:
        raise StateShapeError(f"token ids after layer {window.from_layer}; they belong to layer 0")
    ids = decode_tokens(window.state, window.length_tokens, reader.config.vocab_size)
    batch = reader.engine.embed([ids], [window.question_tokens])
    return reader.engine.states(batch)[0]
