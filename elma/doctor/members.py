"""Checks of who may do what at a secured broker, and of the keys that workers look edges up by.

Inputs: a `SecuredFolder`, the key folder. Output: findings. Neighbours: `broker.roles` says what
each member's rules are, `broker.control` brings them to the broker, `elma.commands.enroll` keys.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

from broker.errors import EnrolmentError
from broker.roles import Kind, Member, first_access, role_of
from broker.secret_files import read_file
from broker.secured import OPERATOR, SecuredFolder
from elma.doctor.certificates import some
from elma.doctor.finding import Finding, State
from protocol.errors import ProtocolError
from protocol.key_files import EDGES_FOLDER_NAME, POOL_SECRET_NAME, load_pool_keys

Rules = set[tuple[str, str, bool]]
_ANEW = "elma revoke NAME --kind KIND, then enrol it again: its bundle is made anew"


def check_rights(folder: SecuredFolder) -> Finding:
    """Whether each member has exactly the rules of its kind, and nobody else has any."""
    file = folder.access_file
    try:
        document = json.loads(read_file(file))
        clients = {str(one["username"]): _role_names(one) for one in document["clients"]}
        roles = {str(one["rolename"]): _rules(one) for one in document["roles"]}
        default = document["defaultACLAccess"]
    except (EnrolmentError, ValueError, KeyError, TypeError, AttributeError) as error:
        text = f"{file} cannot be used ({error}): mosquitto does not start with it"
        return Finding("rights", State.FAILED, text, "bring it from a backup, the broker stopped")
    expected_default = first_access(OPERATOR)["defaultACLAccess"]
    if default != expected_default:
        text = f"{file} allows by default what no rule names: {default}"
        advice = f"stop mosquitto, and make defaultACLAccess {json.dumps(expected_default)}"
        return Finding("rights", State.FAILED, text, advice)
    enrolled = {OPERATOR.identity, *(path.stem for path in folder.issued_folder.glob("*.pem"))}
    lacking = sorted(
        name
        for name in enrolled
        if name not in clients.get(name, ()) or _expected(name) - roles.get(name, set())
    )
    wider = sorted(
        name
        for name, held in clients.items()
        if {rule for role in held for rule in roles.get(role, set())} - _expected(name)
    )
    unknown = sorted(set(clients) - enrolled) if folder.issued_folder.is_dir() else []
    figures = {"members": len(clients), "lacking": lacking, "wider": wider, "unknown": unknown}
    if lacking:
        text = f"enrolled, but without the rights of their kind: {some(lacking)}"
        return Finding("rights", State.FAILED, text, _ANEW, figures)
    if wider:
        text = f"may do more than their kind: {some(wider)}"
        return Finding("rights", State.FAILED, text, _ANEW, figures)
    if unknown:
        text = f"have rights, but no certificate of this folder: {some(unknown)}"
        advice = "elma revoke NAME --kind KIND, unless another authority folder knows them"
        return Finding("rights", State.WARNING, text, advice, figures)
    text = f"{len(clients)} members, each with the rules of its kind; everything else is denied"
    return Finding("rights", State.OK, text, figures=figures)


def check_edge_keys(folder: SecuredFolder, keys: Path) -> Finding:
    """Whether the edges that may ask are those whose questions workers can open."""
    edges = keys / EDGES_FOLDER_NAME
    if not keys.is_dir():
        text = f"no key folder {keys} here; whether edges with rights have keys was not looked at"
        return Finding("edge keys", State.OK, text, "name it with --keys, if it is on this machine")
    try:
        pool = load_pool_keys(keys / POOL_SECRET_NAME)
        document = json.loads(read_file(folder.access_file))
        names = [str(one["username"]) for one in document["clients"]]
    except (ProtocolError, EnrolmentError, ValueError, KeyError, TypeError) as error:
        advice = f"make the pool's keys: elma keys pool --out {keys}"
        return Finding("edge keys", State.FAILED, str(error), advice)
    with_rights = {name.removeprefix("edge-") for name in names if name.startswith("edge-")}
    with_keys = {path.stem for path in edges.glob("*.json")}
    no_key, no_rights = sorted(with_rights - with_keys), sorted(with_keys - with_rights)
    figures = {
        "edges": len(with_keys),
        "pool_key_ids": list(pool.ids),
        "without_key": no_key,
        "without_rights": no_rights,
    }
    if no_key:
        text = f"may ask, but no worker can open it: no key in {edges} for {some(no_key)}"
        advice = "bring EDGE.json from where it was enrolled, or revoke and enrol it again"
        return Finding("edge keys", State.FAILED, text, advice, figures)
    if no_rights:
        text = f"a key in {edges}, but no rights at this broker: {some(no_rights)}"
        advice = "delete the files, or enrol these edges here, or another broker has them"
        return Finding("edge keys", State.WARNING, text, advice, figures)
    text = f"{len(with_keys)} edges have rights and a key in {edges}"
    return Finding("edge keys", State.OK, text, figures=figures)


def _role_names(client: dict[str, Any]) -> set[str]:
    """A client's roles; none of one that is switched off."""
    if client.get("disabled"):
        return set()
    return {str(role["rolename"]) for role in client.get("roles", ())}


def _rules(role: dict[str, Any]) -> Rules:
    return {
        (str(one["acltype"]), str(one["topic"]), bool(one.get("allow", True)))
        for one in role.get("acls", ())
    }


def _expected(identity: str) -> Rules:
    """The rules of a member's kind; none for a name that is no member's."""
    kind, _, name = identity.partition("-")
    if kind not in get_args(Kind):
        return set()
    try:
        return _rules(role_of(Member(kind, name)))  # type: ignore[arg-type]  # checked above
    except EnrolmentError:
        return set()
