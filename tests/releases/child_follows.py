"""A device in a process of its own that follows a channel until it is killed.

    python -m tests.releases.child_follows PORT STORE PUBLISHER_FILE BYTES_PER_SECOND

Prints a line for each blob topic that comes and for each state.
"""

from __future__ import annotations

import sys
from pathlib import Path

from broker.session import Session
from broker.settings import BrokerSettings
from releases.fetching import FetchRules
from releases.follower import ReleaseFollower
from releases.settings import FollowSettings
from releases.store import ReleaseStore
from tests.releases.plant import NOW


def main(port: int, store_folder: Path, publisher_file: Path, bytes_per_second: int) -> None:
    settings = FollowSettings(
        publisher_public_key_file=publisher_file, max_bytes_per_second=bytes_per_second
    )
    store = ReleaseStore(store_folder)
    store.begin_start()
    session = Session(BrokerSettings(port=port, reconnect_min_seconds=0.05), "child")
    follower = ReleaseFollower(
        session,
        store,
        settings,
        publisher_file,
        name="child",
        waits_for_order=True,
        keeps_previous=False,
        adopt=lambda _: None,
        report=lambda progress: print(progress.state, progress.reason_code, flush=True),
        wall_clock=lambda: NOW + 60,
        fetch_rules=FetchRules(answer_seconds=2.0, poll_seconds=0.02),
        retry_seconds=(0.1, 0.5),
    )
    session.on_connection_change = follower.connection_changed
    session.start()
    follower.start()
    while True:
        delivery = session.receive(1.0)
        if delivery is not None:
            if delivery.topic.startswith("elma/v1/blob/"):
                print(delivery.topic, flush=True)
            follower.take(delivery)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
