"""Whether this machine's clock is right: deadlines and expiries are moments, not spans.

Input: the address of a web server whose clock is trusted, such as a worker's `/healthz`. Output: a
finding. MQTT tells no time, so somebody else has to.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime

import httpx

from elma.doctor.finding import Finding, State

ANSWER_SECONDS = 5.0
TOLERATED_SECONDS = 2.0
"""The header has whole seconds, and the answer took its time."""
HARMFUL_SECONDS = 10.0
"""The usual deadline of a question: that far behind, all of them are too late for a worker."""


def check_clock(url: str, *, clock: Callable[[], float] = time.time) -> Finding:
    """Compare the clock with the `Date` of an answer."""
    try:
        began = clock()
        response = httpx.get(url, timeout=ANSWER_SECONDS, trust_env=False)
        ended = clock()
        date = parsedate_to_datetime(response.headers["date"]).timestamp()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        text = f"{url} does not answer: {' '.join(str(error).split())}"
        return Finding("clock", State.WARNING, text, "name another server with --clock")
    except (KeyError, ValueError):
        text = f"{url} answers without a Date"
        return Finding("clock", State.WARNING, text, "name another server with --clock")
    # The header was written somewhere between the two, and is cut to whole seconds.
    ahead = (began + ended) / 2 - (date + 0.5)
    figures = {"ahead_seconds": round(ahead, 3), "url": url}
    text = f"{abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} {url}"
    if abs(ahead) <= TOLERATED_SECONDS + (ended - began) / 2:
        return Finding("clock", State.OK, text, figures=figures)
    state = State.FAILED if abs(ahead) >= HARMFUL_SECONDS else State.WARNING
    advice = "set the clock, and keep it right: timedatectl set-ntp true"
    return Finding("clock", state, text, advice, figures)
