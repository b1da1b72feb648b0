"""Live drift: how often the edges' own answers are those of full depth, by release, exit and kind.

Inputs: what an edge had found in a window at its exit, and what the last layer finds. Outputs: a
counter for Prometheus, and the counts that the worker reports to the publisher. Neighbours:
`resume` tells of every answered request, `agent` publishes `snapshot` with the worker's releases.

Two answers of a window agree when they are the same tokens, or both "no answer". The worker knows
no text, so "the king" and "king" are two answers. Windows of offloaded questions disagree more
often than those of audits: the device was not sure of them.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

from prometheus_client import Counter

from protocol.messages import Provisional
from protocol.release_messages import MAX_AGREEMENTS, Agreement, AgreementKind
from reader.exit_traces import answer_tokens
from reader.exits import ExitSettings
from reader.spans import WindowSpans

_Key = tuple[str, int, AgreementKind]


class AgreementCounter:
    """Counts for one worker since it started; any thread.

    `counter` has the labels layer, kind and agrees (yes or no).
    """

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._lock = threading.Lock()
        self._counts: dict[_Key, tuple[int, int]] = {}  # agreed, total

    def note(
        self,
        settings: ExitSettings,
        release: str,
        provisional: Mapping[int, Provisional],
        results: Mapping[int, WindowSpans],
        *,
        is_audit: bool,
    ) -> None:
        """Compare the windows of one answered request; those without a provisional span are not.

        `settings` are those of the release. A layer that the release does not have is not counted:
        an edge may not make new labels.
        """
        kind: AgreementKind = "audit" if is_audit else "offload"
        for index, mine in provisional.items():
            result = results.get(index)
            if result is None or mine.layer > len(settings.exit_thresholds):
                continue
            agrees = (mine.start_token, mine.end_token) == answer_tokens(result, settings)
            with self._lock:
                key = release, mine.layer, kind
                agreed, total = self._counts.get(key, (0, 0))
                self._counts[key] = agreed + agrees, total + 1
            self._counter.labels(str(mine.layer), kind, "yes" if agrees else "no").inc()

    def snapshot(self) -> tuple[Agreement, ...]:
        """The counts so far, in order; of more than a report holds, those with the most windows."""
        with self._lock:
            counts = sorted(self._counts.items(), key=lambda item: -item[1][1])[:MAX_AGREEMENTS]
        return tuple(
            Agreement(release, layer, kind, agreed, total)
            for (release, layer, kind), (agreed, total) in sorted(counts)
        )

    def forget(self, release: str) -> None:
        """Leave a release out of later reports; the metric keeps what it counted."""
        with self._lock:
            self._counts = {key: value for key, value in self._counts.items() if key[0] != release}
