"""The three dashboards as data: what each panel asks Prometheus, and how it reads.

Inputs: none. Outputs: `DASHBOARDS`, from which `dashboards` makes Grafana's JSON and `pictures`
draws; a test runs every query. Neighbours: the names come from `catalogue`.

`$edge` and `$worker` are Grafana's variables (regular expressions), `$__rate_interval` its range.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Unit = Literal["s", "bytes", "percentunit", "short", "ops", "dtdurations", "Bps"]


@dataclass(frozen=True)
class Query:
    """PromQL, and the name of each series with labels in {{...}}.

    `empty_because` says why it may have no result on a sound system under load.
    """

    expression: str
    legend: str
    empty_because: str = ""


@dataclass(frozen=True)
class Panel:
    """A picture over time; with `is_number` the last value in large letters.

    With `is_label` too, the name of the series stands there instead, for metrics that are always 1.
    """

    title: str
    unit: Unit
    queries: tuple[Query, ...]
    text: str = ""
    is_number: bool = False
    is_label: bool = False


@dataclass(frozen=True)
class Dashboard:
    """One page; `variables` are names of labels and the metric in which Grafana finds values."""

    name: str
    title: str
    panels: tuple[Panel, ...]
    variables: tuple[tuple[str, str, str], ...] = ()


def _quantiles(histogram: str, matcher: str = "") -> tuple[Query, ...]:
    rate = f"sum by (le) (rate({histogram}_bucket{matcher}[$__rate_interval]))"
    return tuple(
        Query(f"histogram_quantile({share}, {rate})", f"p{round(100 * share)}")
        for share in (0.5, 0.95)
    )


def _mean(histogram: str, labels: str, matcher: str = "") -> str:
    parts = [
        f"sum by ({labels}) (rate({histogram}_{part}{matcher}[$__rate_interval]))"
        for part in ("sum", "count")
    ]
    return " / ".join(parts)


def _rate(counter: str, labels: str, matcher: str = "") -> str:
    return f"sum by ({labels}) (rate({counter}{matcher}[$__rate_interval]))"


_W = '{instance=~"$worker"}'
_POOL = Dashboard(
    "pool",
    "ELMA: the pool of workers",
    (
        Panel("Workers that take requests", "short", (Query("elma:workers:taking", "workers"),),
              is_number=True),
        Panel("Sent away as busy", "percentunit", (Query("elma:busy:ratio5m", "share"),),
              is_number=True),
        Panel("Queue, p95 of five minutes", "s", (Query("elma:queue_seconds:p95_5m", "p95"),),
              is_number=True),
        Panel("Requests by what became of them", "ops",
              (Query(_rate("elma_worker_requests_total", "outcome", _W), "{{outcome}}"),)),
        Panel("Requests by worker", "ops",
              (Query(_rate("elma_worker_requests_total", "instance", _W), "{{instance}}"),),
              "How evenly the broker shares them out."),
        Panel("Seconds without being computed", "s",
              _quantiles("elma_worker_queue_seconds", _W)),
        Panel("Seconds in batches", "s", _quantiles("elma_worker_compute_seconds", _W)),
        Panel("Held requests and waiting windows", "short", (
            Query(f"elma_worker_queue_requests{_W}", "requests {{instance}}"),
            Query(f"elma_worker_queue_windows{_W}", "windows {{instance}}"))),
        Panel("Windows in a batch, by parameter group", "short",
              (Query(_mean("elma_worker_batch_windows", "group", _W), "group {{group}}"),),
              "Mean. Windows of different depths share a batch when they share a group."),
        Panel("Tokens through layers", "ops",
              (Query(_rate("elma_worker_tokens_total", "instance", _W), "{{instance}}"),)),
        Panel("Bytes of a request", "bytes", _quantiles("elma_worker_request_bytes", _W)),
        Panel("Trouble", "ops", (
            Query(_rate("elma_worker_busy_total", "instance", _W), "busy {{instance}}"),
            Query(_rate("elma_worker_expired_total", "instance", _W), "expired {{instance}}"),
            Query(_rate("elma_worker_duplicates_total", "instance", _W), "repeated {{instance}}"),
            Query(_rate("elma_worker_failures_total", "part", _W), "failed {{part}}",
                  empty_because="a part has a series from its first unforeseen error on"))),
        Panel("Releases in memory", "short",
              (Query(f"elma_worker_releases_in_memory{_W}", "{{instance}}"),)),
        Panel("Resident memory", "bytes",
              (Query(f"elma_worker_process_resident_memory_bytes{_W}", "{{instance}}"),)),
        Panel("Processors in use", "short",
              (Query(_rate("elma_worker_process_cpu_seconds_total", "instance", _W),
                     "{{instance}}"),)),
    ),
    (("worker", "instance", "elma_worker_broker_connected"),),
)  # fmt: skip

_FLEET = Dashboard(
    "fleet",
    "ELMA: the fleet of devices",
    (
        Panel("Devices with a connection", "short",
              (Query("sum(elma_edge_broker_connected)", "devices"),), is_number=True),
        Panel("Answered without the cloud that was asked", "percentunit",
              (Query("elma:degraded:ratio5m", "share"),), is_number=True),
        Panel("Answer, p95 of five minutes", "s", (Query("elma:answer_seconds:p95_5m", "p95"),),
              is_number=True),
        Panel("Questions by result and who answered", "ops",
              (Query("elma:questions:rate5m", "{{result}}, {{resolved_by}}"),)),
        Panel("Seconds to the answer", "s", _quantiles("elma_edge_answer_seconds")),
        Panel("Mean exit layer", "short",
              (Query("sum(rate(elma_edge_exit_layer_sum[$__rate_interval])) / "
                     "sum(rate(elma_edge_exit_layer_count[$__rate_interval]))", "layer"),)),
        Panel("Seconds to the cloud's answer", "s", _quantiles("elma_edge_offload_seconds")),
        Panel("Finished on the device, by reason", "ops",
              (Query(_rate("elma_edge_degraded_total", "reason"), "{{reason}}"),)),
        Panel("Sent again, busy, leases run out", "ops", (
            Query("sum(rate(elma_edge_retries_total[$__rate_interval]))", "sent again"),
            Query("sum(rate(elma_edge_busy_total[$__rate_interval]))", "busy"),
            Query("sum(rate(elma_edge_lease_expiries_total[$__rate_interval]))", "no word"))),
        Panel("Bytes of states, sealed", "bytes", _quantiles("elma_edge_request_bytes")),
        Panel("Outbox, the fullest ten", "short",
              (Query("topk(10, elma_edge_outbox_pending)", "{{edge}}"),)),
        Panel("Differs from full depth, by exit (a day)", "percentunit",
              (Query("elma:disagreement:ratio1d", "layer {{layer}}, {{kind}}"),),
              "See docs/drift.md; `audit` is there only where devices sample."),
        Panel("Devices by release", "short",
              (Query("count by (release) (elma_edge_release_info)", "{{release}}"),)),
        Panel("Rollout: devices", "short", (Query("elma_publisher_edges", "{{state}}"),)),
        Panel("Rollout: share, and whether it is paused", "percentunit", (
            Query("elma_publisher_rollout_share_ratio", "share"),
            Query("elma_publisher_rollout_paused", "paused"))),
        Panel("Canaries failed, releases given up", "short", (
            Query("sum(increase(elma_edge_canary_failures_total[1h]))", "canaries"),
            Query("sum(increase(elma_edge_release_returns_total[1h]))", "given up")),
            "In an hour."),
        Panel("Until the manifest expires", "dtdurations",
              (Query("elma_publisher_manifest_expires_timestamp_seconds - time()", "{{channel}}"),),
              is_number=True),
        Panel("Certificates that expire first", "dtdurations",
              (Query("bottomk(5, (elma_edge_certificate_expires_timestamp_seconds > 0) - time())",
                     "{{edge}}", empty_because="a broker without TLS takes no certificates"),)),
    ),
)  # fmt: skip

_E = '{edge=~"$edge"}'
_DEVICE = Dashboard(
    "device",
    "ELMA: one device",
    (
        Panel("Connected", "short", (Query(f"elma_edge_broker_connected{_E}", "{{edge}}"),),
              is_number=True),
        Panel("Release version", "short", (Query(f"elma_edge_release_version{_E}", "{{edge}}"),),
              is_number=True),
        Panel("Computes with", "short",
              (Query(f"elma_edge_engine_info{_E}", "{{engine}} {{precision}}"),),
              is_number=True, is_label=True),
        Panel("Questions", "ops", (
            Query(_rate("elma_edge_questions_total", "result, resolved_by", _E),
                  "{{result}}, {{resolved_by}}"),)),
        Panel("Seconds to the answer", "s", _quantiles("elma_edge_answer_seconds", _E)),
        Panel("Mean exit layer", "short",
              (Query(_mean("elma_edge_exit_layer", "edge", _E), "{{edge}}"),)),
        Panel("Waiting, in the cloud, in the outbox", "short", (
            Query(f"elma_edge_waiting_questions{_E}", "waiting"),
            Query(f"elma_edge_in_flight_requests{_E}", "in the cloud"),
            Query(f"elma_edge_outbox_pending{_E}", "outbox"))),
        Panel("Seconds to the cloud's answer", "s", _quantiles("elma_edge_offload_seconds", _E)),
        Panel("Codecs of states", "ops",
              (Query(_rate("elma_edge_requests_packed_total", "codec", _E), "{{codec}}"),)),
        Panel("Finished here, by reason", "ops",
              (Query(_rate("elma_edge_degraded_total", "reason", _E), "{{reason}}"),)),
        Panel("Sent again, busy, leases run out", "ops", (
            Query(f"rate(elma_edge_retries_total{_E}[$__rate_interval])", "sent again"),
            Query(f"rate(elma_edge_busy_total{_E}[$__rate_interval])", "busy"),
            Query(f"rate(elma_edge_lease_expiries_total{_E}[$__rate_interval])", "no word"))),
        Panel("What is done about releases", "short",
              (Query(f"elma_edge_release_state{_E} == 1", "{{state}}"),)),
        Panel("Download", "Bps",
              (Query(f"rate(elma_edge_download_bytes_total{_E}[$__rate_interval])", "{{edge}}"),)),
        Panel("Resident memory", "bytes",
              (Query(f"elma_edge_process_resident_memory_bytes{_E}", "{{edge}}"),)),
        Panel("Processors in use", "short",
              (Query(_rate("elma_edge_process_cpu_seconds_total", "edge", _E), "{{edge}}"),)),
        Panel("Refused questions and ignored messages", "ops", (
            Query(_rate("elma_edge_refused_total", "code", _E), "refused: {{code}}",
                  empty_because="a code has a series from the first refusal on"),
            Query(_rate("elma_edge_ignored_messages_total", "cause", _E), "ignored: {{cause}}",
                  empty_because="a cause has a series from the first such message on"))),
    ),
    (("edge", "edge", "elma_edge_broker_connected"),),
)  # fmt: skip

DASHBOARDS = (_POOL, _FLEET, _DEVICE)
