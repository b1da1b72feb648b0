"""`elma bench wire` and `frontier`: real processes, links that delay and count, honest rows."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from elma.bench import frontier_report
from elma.bench.frontier import FrontierPlan, run_frontier_bench
from elma.bench.frontier_plant import ALWAYS, AT_LAYER, FULL_DEPTH, TEXT, Asking
from elma.bench.frontier_quality import Quality
from elma.bench.frontier_report import find_better
from elma.bench.frontier_rows import make_ways, row_of, weighted_percentile
from elma.bench.links import Link, ShapingProxy
from elma.bench.questions import load_bench_questions
from elma.bench.slow_device import SlowDown
from elma.bench.wire import WirePlan, run_wire_bench
from elma.output import CommandError
from reader.exits import ExitSettings
from tests.tiny import make_tiny_model

SLOW = Link("slow", 8_000.0, 0.2)
LOOPBACK = Link("loopback", None, 0.0)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four layers, of which a device runs two before it is ever certain."""
    settings = ExitSettings("entropy", (-1.0,) * 4, (0.0,) * 4, (1.0,) * 4, 2)
    return make_tiny_model(tmp_path_factory.mktemp("tiny"), settings=settings)


def test_a_link_adds_its_round_trip_and_the_time_of_the_bytes() -> None:
    assert SLOW.seconds(900, 100) == pytest.approx(1.2)
    assert LOOPBACK.seconds(10**9, 0) == 0.0


def test_a_proxy_hands_on_every_byte_and_counts_both_directions() -> None:
    with echo_server() as port, ShapingProxy(port, LOOPBACK) as proxy:
        sent = bytes(range(256)) * 40
        assert through(proxy.port, sent) == sent
        assert proxy.take_bytes() == (len(sent), len(sent))
        assert proxy.take_bytes() == (0, 0)


def test_a_slow_link_takes_at_least_what_it_promises() -> None:
    with echo_server() as port, ShapingProxy(port, LOOPBACK) as proxy:
        proxy.link = SLOW
        begin = time.monotonic()
        assert through(proxy.port, b"x" * 100) == b"x" * 100
        assert time.monotonic() - begin >= SLOW.seconds(100, 100)


def test_a_connection_that_ends_ends_on_the_other_side_too() -> None:
    with echo_server() as port, ShapingProxy(port, LOOPBACK) as proxy:
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=10.0) as client:
            client.sendall(b"last")
            client.shutdown(socket.SHUT_WR)
            received = b""
            while part := client.recv(100):
                received += part
        assert received == b"last"


def test_a_slow_device_stands_still_for_a_part_of_the_time_and_runs_afterwards() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            states = set()
            with SlowDown([process.pid], 0.5):
                end = time.monotonic() + 10.0
                while not {"T", "R"} <= states and time.monotonic() < end:
                    states.add(state_of(process.pid))
            assert {"T", "R"} <= states
            assert state_of(process.pid) == "R"
        finally:
            process.kill()


@pytest.mark.parametrize("share", [0.0, 1.5, -1.0])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="share"):
        SlowDown([], share)


def test_every_codec_has_a_row_of_what_it_costs(
    tiny: Path, tmp_path: Path, mosquitto_program: Path
) -> None:
    plan = WirePlan(str(tiny), tokens=40, repeats=2, rounds=2, f1_questions=3)
    questions = load_bench_questions(None)
    result = run_wire_bench(plan, questions, out=tmp_path)
    rows = {row["codec"]: row for row in result["rows"]}
    assert {"fp32", "fp16", "int8"} <= set(rows)
    wanted = {"codec", "bytes", "encode_ms", "decode_ms", "seal_ms", "f1_offloaded"}
    assert all(wanted <= set(row) for row in rows.values())
    assert rows["fp32"]["bytes"] == 40 * 32 * 4
    assert rows["fp16"]["bytes"] * 2 == rows["fp32"]["bytes"]
    assert all(row["sealed_bytes"] > row["bytes"] for row in rows.values())
    # Every question is sent, and token ids lose nothing: the worker reads what the device would.
    assert rows["tokens"]["f1_offloaded"] == rows["fp32"]["f1_offloaded"] >= 0
    assert result["round_trip_p50_ms"] == rows["int8"]["round_trip_p50_ms"] > 0
    assert {"wire.json", "wire.md", "wire.png"} <= {path.name for path in tmp_path.iterdir()}


def test_a_window_longer_than_every_question_is_wrong_input(tiny: Path) -> None:
    plan = WirePlan(str(tiny), tokens=100_000)
    with pytest.raises(CommandError, match="--tokens"):
        run_wire_bench(plan, load_bench_questions(None), out=None)


def test_the_frontier_has_every_way_under_every_link(
    tiny: Path, tmp_path: Path, mosquitto_program: Path
) -> None:
    fast = Link("fast", 1e7, 0.01)
    plan = FrontierPlan(
        str(tiny),
        codecs=("int8", "tokens"),
        cloud_threads=1,
        questions=2,
        f1_questions=4,
        links=(fast, LOOPBACK),
        check_seconds=0.0,
    )
    result = run_frontier_bench(plan, load_bench_questions(None), out=tmp_path)
    ways = {FULL_DEPTH, AT_LAYER, TEXT, "ours/int8", "ours/tokens", ALWAYS, "random", "oracle"}
    assert {(row["link"], row["way"]) for row in result["rows"]} == {
        (link, way) for link in ("fast", "loopback") for way in ways
    }
    rows = {row["way"]: row for row in result["rows"] if row["link"] == "fast"}
    assert rows["ours/int8"]["offload_rate"] == 1.0  # it is never certain
    assert rows["ours/int8"]["bytes"] > rows[TEXT]["bytes"] > 0
    assert rows[FULL_DEPTH]["bytes"] == rows[AT_LAYER]["bytes"] == 0
    assert rows["ours/tokens"]["bytes"] < rows["ours/int8"]["bytes"]
    assert rows["oracle"]["is_bound"]
    assert set(result["auto"]) == {"fast", "loopback"}
    assert result["edge_layers"] == 2
    assert [check["link"] for check in result["checks"]] == ["fast"]
    assert result["checks"][0]["questions"] > 0
    assert "proxy" in result["shaping"]
    assert (tmp_path / "frontier.png").is_file()


def make_quality() -> Quality:
    """Four questions; the policy sends the last two, one of which the cloud answers better."""
    return Quality(
        has_answer=np.array([True, True, False, True]),
        full_depth=np.array([1.0, 0.0, 1.0, 1.0]),
        at_last_edge_layer=np.array([1.0, 1.0, 1.0, 0.0]),
        is_offloaded=np.array([False, False, True, True]),
        helped={"int8": np.array([1.0, 1.0, 1.0, 0.5])},
    )


def make_rows(link: Link, cloud_bytes: int = 1_000) -> dict[str, dict[str, object]]:
    quality = make_quality()
    local, cloud = Asking(0.1, 0, 0, False), Asking(0.2, cloud_bytes, 0, True)
    askings = {
        FULL_DEPTH: [local] * 4,
        AT_LAYER: [local] * 4,
        TEXT: [Asking(0.15, 100, 0, True)] * 4,
        ALWAYS: [cloud] * 4,
        "ours/int8": [local, local, cloud, cloud],
    }
    ways = make_ways(quality, askings, ["int8"], [0, 1, 2, 3])
    return {way.name: row_of(way, link, quality, None) for way in ways}


def test_random_sends_as_many_and_the_oracle_bounds_everybody() -> None:
    rows = make_rows(LOOPBACK)
    assert rows["random"]["offload_rate"] == rows["ours/int8"]["offload_rate"] == 0.5
    assert rows["random"]["f1"] == 75.0
    assert rows["ours/int8"]["f1"] == 87.5
    assert rows["oracle"]["f1"] == 100.0
    assert rows["oracle"]["offload_rate"] == 0.25


def test_only_questions_that_the_cloud_answered_pay_for_the_link() -> None:
    rows = make_rows(SLOW)
    assert rows[AT_LAYER]["p95_ms"] == 100.0
    assert rows[ALWAYS]["p50_ms"] == pytest.approx(1000 * (0.2 + 0.2 + 1.0))
    assert rows["ours/int8"]["bytes"] == 500


def test_where_the_text_is_better_the_result_says_so() -> None:
    rows = list(make_rows(SLOW).values())
    assert len(find_better(rows, TEXT)) == 1
    assert "100 against 500 bytes" in find_better(rows, TEXT)[0]
    slower = [
        row | ({"bytes": 9_999, "p50_ms": 1e5, "p95_ms": 1e6} if row["way"] == TEXT else {})
        for row in rows
    ]
    assert find_better(slower, TEXT) == []


def test_a_weighted_percentile_counts_weights() -> None:
    assert weighted_percentile([1.0, 2.0, 3.0], [1.0, 1.0, 1.0], 50) == 2.0
    assert weighted_percentile([1.0, 9.0], [0.9, 0.1], 50) == 1.0
    assert weighted_percentile([1.0, 9.0], [0.9, 0.1], 95) == 9.0


def test_every_way_has_a_name_for_people() -> None:
    for way in (FULL_DEPTH, AT_LAYER, TEXT, ALWAYS, "random", "oracle", "ours/int8"):
        assert frontier_report.name_of(way) != way


def state_of(process_id: int) -> str:
    """`R` for a process that runs, `T` for one that is stopped."""
    return Path(f"/proc/{process_id}/stat").read_text().rpartition(") ")[2][0]


@contextmanager
def echo_server() -> Iterator[int]:
    """The port of a server that sends back what it gets."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with listener.accept()[0] as connection:
                while data := connection.recv(4_096):
                    connection.sendall(data)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(10.0)


def through(port: int, sent: bytes) -> bytes:
    """What comes back of what was sent."""
    with socket.create_connection(("127.0.0.1", port), timeout=20.0) as client:
        client.sendall(sent)
        received = b""
        while len(received) < len(sent):
            received += client.recv(65_536)
    return received
