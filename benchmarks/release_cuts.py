"""Transfers of a release, cut at random: does each complete, and what is fetched twice?

    python -m benchmarks.release_cuts --cuts 50 --seed 1 --json

One edge that has another model downloads a release over a metered link. At random instants one of
three things happens, in turn: the edge is killed with -9 and started again; the broker is killed
with -9 and started again, and has lost what it retained, so that the publisher has to say it anew;
the link is cut. After `--cuts-each` cuts the transfer may complete; then the edge begins again
without the release. All the time a client asks questions: each answer must name one of the two
whole releases.

Bytes are counted on the link. What was under way when the cut came is fetched twice, at most the
window of four chunks for each cut; no chunk that was kept is. Exit status 0 only if every transfer
completed within that, and no answer named anything else.
"""

from __future__ import annotations

import random
import shutil
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from benchmarks.release_fleet import QUESTION
from benchmarks.release_plant import Edge, Plant, say, wait_until
from elma.bench.links import Link, ShapingProxy
from elma.bench.machine import describe_machine
from elma.demonstration.processes import Child, signals_raise
from elma.output import JsonOption, print_json, print_table
from protocol.manifest import CHUNK_BYTES
from reader.weights import folder_digest, resolve_model_folder

WINDOW = 4
KINDS = ("edge", "broker", "link")


@dataclass
class Result:
    """One transfer: what it took, and how often it was cut."""

    cuts: list[str] = field(default_factory=list)
    fetched_bytes: int = 0
    link_bytes: int = 0
    seconds: float = 0.0


def main(
    model: Annotated[str, typer.Option(help="What is published.")] = "elma-small",
    before: Annotated[str, typer.Option(help="What the edge has.")] = "elma-fast",
    cuts: Annotated[int, typer.Option(min=1, help="How many cuts altogether.")] = 50,
    cuts_each: Annotated[int, typer.Option(min=1, help="How many in one transfer.")] = 5,
    megabits: Annotated[float, typer.Option(help="The link's speed.")] = 60.0,
    seed: Annotated[int, typer.Option(help="Of the instants.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Cut, and print one table or one JSON document."""
    with signals_raise(), ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="elma-cuts-")))
        result = Campaign(folder, stack, model, before, megabits, seed).run(cuts, cuts_each)
    if as_json:
        print_json(result)
    else:
        print_table(("what", "value"), [(name, str(value)) for name, value in result.items()])
    raise typer.Exit(0 if result["is_right"] else 1)


class Campaign:
    """The plant, one edge, and a client that never stops asking."""

    def __init__(
        self,
        folder: Path,
        stack: ExitStack,
        model: str,
        before: str,
        megabits: float,
        seed: int,
    ) -> None:
        self._random = random.Random(seed)  # noqa: S311  # instants, not secrets
        self._plant = Plant(folder, stack)
        link = Link(f"{megabits:g} Mbit/s", 1e6 * megabits, 0.01)
        self._proxy = stack.enter_context(ShapingProxy(self._plant.broker.port, link))
        self._wanted = folder_digest(resolve_model_folder(model))
        self._allowed = {self._wanted, folder_digest(resolve_model_folder(before))}
        say("publishing")
        self._published = self._plant.publish(model, "--no-wait")
        self._service = self._start_service(stack)
        self._edge = self._plant.edge(
            "edge",
            broker_port=self._proxy.port,
            model=str(resolve_model_folder(before)),
            engine="onnx",
        )
        self._answers: dict[str, int] = {}
        self._strange: list[str] = []
        self._asking = threading.Event()
        self._asker = threading.Thread(target=self._ask_always, daemon=True)
        stack.callback(self._asking.set)

    def run(self, cuts: int, cuts_each: int) -> dict[str, Any]:
        """All transfers; the document of the result."""
        self._asker.start()
        results, left = [], cuts
        while left > 0:
            results.append(self._transfer(min(left, cuts_each)))
            left -= len(results[-1].cuts)
            say(f"transfer {len(results)}: {results[-1]}")
        whole = self._transfer(0)
        self._asking.set()
        twice = [result.link_bytes - whole.link_bytes for result in results]
        kept_twice = sum(max(0, result.fetched_bytes - whole.fetched_bytes) for result in results)
        allowed = [WINDOW * CHUNK_BYTES * len(result.cuts) for result in results]
        return {
            "is_right": not self._strange
            and kept_twice == 0
            and all(more <= most for more, most in zip(twice, allowed, strict=True)),
            "transfers": len(results),
            "cuts": {kind: sum(r.cuts.count(kind) for r in results) for kind in KINDS},
            "bytes_of_a_whole_transfer": whole.link_bytes,
            "bytes_kept_twice": kept_twice,
            "bytes_fetched_again": {"total": sum(twice), "most_in_a_transfer": max(twice)},
            "bytes_that_may_be": sum(allowed),
            "answers_by_release": {digest[:12]: n for digest, n in self._answers.items()},
            "strange_answers": self._strange[:10],
            "chunk_bytes": CHUNK_BYTES,
            "machine": describe_machine(1),
        }

    def _transfer(self, cuts: int) -> Result:
        """From an edge without the release to one that answers with it."""
        edge, result = self._edge, Result()
        edge.stop()
        self._proxy.take_bytes()
        shutil.rmtree(edge.folder / "releases", ignore_errors=True)
        edge.start()
        counted = _Fetched(edge)
        begin = time.monotonic()
        for number in range(cuts):
            wait_until(lambda: counted.look() > 0 or edge.release == self._wanted, "a first chunk")
            time.sleep(self._random.uniform(0.0, 0.7))
            if edge.release == self._wanted:
                break
            counted.look()
            self._cut(KINDS[(number + self._random.randrange(3)) % 3], result, counted)
        wait_until(lambda: self._settled(counted), "the release in use", seconds=300.0)
        result.fetched_bytes, result.seconds = counted.look(), time.monotonic() - begin
        result.link_bytes = self._proxy.take_bytes()[1]
        return result

    def _settled(self, counted: _Fetched) -> bool:
        counted.look()
        return self._edge.release == self._wanted

    def _cut(self, kind: str, result: Result, counted: _Fetched) -> None:
        result.cuts.append(kind)
        if kind == "edge":
            self._edge.kill()
            counted.begin_life()
            self._edge.start()
        elif kind == "broker":
            self._plant.broker.kill()
            for file in (self._plant.broker.directory / "mosquitto-data").glob("*.db*"):
                file.unlink()
            self._plant.broker.restart()
        else:
            self._proxy.cut()

    def _start_service(self, stack: ExitStack) -> Child:
        """What says the retained messages again after a broker has lost them."""
        options = [*self._plant.publisher_options, "--channel", "stable"]
        child = Child("rollout", ["rollout", "run", *options], self._plant.folder / "rollout.log")
        stack.callback(child.stop)
        return child

    def _ask_always(self) -> None:
        while not self._asking.wait(0.05):
            try:
                response = self._edge.ask(QUESTION)
            except httpx.HTTPError:
                continue  # it was killed, or starts
            if response.status_code == 200:
                digest = str(response.json()["release"])
                self._answers[digest] = self._answers.get(digest, 0) + 1
                if digest not in self._allowed:
                    self._strange.append(digest)


class _Fetched:
    """Bytes of releases that an edge has fetched, over all its lives."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge
        self._before = 0
        self._now = 0

    def look(self) -> int:
        """How many by now."""
        found = self._edge.metrics().get("elma_edge_download_bytes_total")
        if found is not None:
            self._now = int(found)
        return self._before + self._now

    def begin_life(self) -> None:
        """The edge was killed: it counts from 0 again."""
        self._before, self._now = self._before + self._now, 0


if __name__ == "__main__":
    typer.run(main)
