"""One session, two servers: server A writes it, server B reads it and receives its events."""

import os
import secrets
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc

from sessiond.v1.session_pb2 import AttributeValue, Cause, EventType, Session, SessionEvent, SessionKey, SessionView
from sessiond.v1.session_service_pb2 import CreateSessionRequest, DeleteSessionRequest, GetSessionRequest
from sessiond.v1.session_service_pb2 import WatchRequest, WatchResponse
from sessiond.v1.session_service_pb2_grpc import SessionServiceStub

NAMESPACE = os.environ.get("SESSIOND_NAMESPACE", "quickstart")
CONTENT = 'user_id=1 cart=["item1","item2"]'
END = time.monotonic() + 10


def main() -> None:
    # The watch has a separate channel: an unread watch blocks other calls on its channel.
    with connect("SESSIOND_A") as to_a, connect("SESSIOND_B") as to_b, connect("SESSIOND_B") as to_watch:
        run(SessionServiceStub(to_a), SessionServiceStub(to_b), SessionServiceStub(to_watch))


def run(a: SessionServiceStub, b: SessionServiceStub, watcher: SessionServiceStub) -> None:
    labels = {"quickstart": secrets.token_hex(16)}
    watch = watcher.Watch(
        WatchRequest(namespace=NAMESPACE, whole_namespace=True, labels=labels, view=SessionView.SESSION_VIEW_FULL),
        timeout=remaining(),
    )
    next(watch)  # The first bookmark: the watch is open.

    attributes = {"user_id": AttributeValue(int_value=1), "cart": AttributeValue(json_value='["item1","item2"]')}
    request = CreateSessionRequest(namespace=NAMESPACE, subject="1", labels=labels, attributes=attributes)
    created = a.CreateSession(request, timeout=remaining())
    key = SessionKey(token=created.token)
    print(f"server A created the session of user {created.session.subject}")

    event = wait_for(watch, EventType.EVENT_TYPE_CREATED, created.session.id)
    check("server B received CREATED", content(event.session), CONTENT)

    read = b.GetSession(GetSessionRequest(namespace=NAMESPACE, key=key), timeout=remaining())
    check("server B read", content(read.session), CONTENT)

    a.DeleteSession(DeleteSessionRequest(namespace=NAMESPACE, key=key), timeout=remaining())
    event = wait_for(watch, EventType.EVENT_TYPE_ENDED, created.session.id)
    check("server B received ENDED", Cause.Name(event.cause).removeprefix("CAUSE_"), "LOGOUT")

    try:
        a.GetSession(GetSessionRequest(namespace=NAMESPACE, key=key), timeout=remaining())
        check("server A returned", "OK", "NOT_FOUND")
    except grpc.RpcError as error:
        check("server A returned", error.code().name, "NOT_FOUND")
    print("done")


def connect(variable: str) -> grpc.Channel:
    """Returns a channel to a server: with TLS and the API key, if SESSIOND_CA is set."""
    address = os.environ.get(variable)
    if not address:
        raise RuntimeError(f"{variable} is not set: host:port of a server")
    ca, key_file = os.environ.get("SESSIOND_CA"), os.environ.get("SESSIOND_API_KEY_FILE")
    if not ca:
        if key_file:
            raise RuntimeError("SESSIOND_API_KEY_FILE needs SESSIOND_CA")
        return grpc.insecure_channel(address)
    authorities = Path(ca).read_bytes()
    if not authorities:  # grpc would trust its default authorities.
        raise RuntimeError(f"{ca} contains no certificate")
    credentials = grpc.ssl_channel_credentials(authorities)
    if key_file:
        key = grpc.access_token_call_credentials(Path(key_file).read_text().strip())
        credentials = grpc.composite_channel_credentials(credentials, key)
    return grpc.secure_channel(address, credentials)


def remaining() -> float:
    return END - time.monotonic()


def wait_for(watch: Iterator[WatchResponse], event_type: EventType, session_id: str) -> SessionEvent:
    for response in watch:
        for event in response.events:
            if event.type == event_type and event.id == session_id:
                return event
    raise RuntimeError(f"the watch ended before {EventType.Name(event_type)}")


def content(session: Session) -> str:
    return f"user_id={session.attributes['user_id'].int_value} cart={session.attributes['cart'].json_value}"


def check(what: str, actual: str, expected: str) -> None:
    if actual != expected:
        raise RuntimeError(f"{what}: {actual}, expected {expected}")
    print(f"{what}: {actual}")


if __name__ == "__main__":
    try:
        main()
    except grpc.RpcError as error:
        sys.exit(f"quickstart: {error.code().name}: {error.details()}")
    except Exception as error:
        sys.exit(f"quickstart: {error}")
