"""One session, two servers: what server A keeps, server B tells."""

import os
import secrets
import sys
import time
from collections.abc import Iterator

import grpc

from sessiond.v1.session_pb2 import AttributeValue, Cause, EventType, Session, SessionEvent, SessionKey, SessionView
from sessiond.v1.session_service_pb2 import CreateSessionRequest, DeleteSessionRequest, GetSessionRequest
from sessiond.v1.session_service_pb2 import WatchRequest, WatchResponse
from sessiond.v1.session_service_pb2_grpc import SessionServiceStub

NAMESPACE = os.environ.get("SESSIOND_NAMESPACE", "quickstart")
CONTENT = 'user_id=1 cart=["item1","item2"]'
END = time.monotonic() + 10


def main() -> None:
    a, b = address("SESSIOND_A"), address("SESSIOND_B")
    # A watch has a channel of its own: a stalled one blocks the calls beside it.
    with grpc.insecure_channel(a) as to_a, grpc.insecure_channel(b) as to_b, grpc.insecure_channel(b) as to_watch:
        tell_the_story(SessionServiceStub(to_a), SessionServiceStub(to_b), SessionServiceStub(to_watch))


def tell_the_story(a: SessionServiceStub, b: SessionServiceStub, watcher: SessionServiceStub) -> None:
    labels = {"quickstart": secrets.token_hex(16)}
    watch = watcher.Watch(
        WatchRequest(namespace=NAMESPACE, whole_namespace=True, labels=labels, view=SessionView.SESSION_VIEW_FULL),
        timeout=remaining(),
    )
    next(watch)  # A bookmark: from here on nothing is missed.

    attributes = {"user_id": AttributeValue(int_value=1), "cart": AttributeValue(json_value='["item1","item2"]')}
    request = CreateSessionRequest(namespace=NAMESPACE, subject="1", labels=labels, attributes=attributes)
    created = a.CreateSession(request, timeout=remaining())
    key = SessionKey(token=created.token)
    print(f"server A keeps the session of user {created.session.subject}")

    heard = wait_for(watch, EventType.EVENT_TYPE_CREATED, created.session.id)
    tell("server B heard CREATED", content(heard.session), CONTENT)

    read = b.GetSession(GetSessionRequest(namespace=NAMESPACE, key=key), timeout=remaining())
    tell("server B reads", content(read.session), CONTENT)

    a.DeleteSession(DeleteSessionRequest(namespace=NAMESPACE, key=key), timeout=remaining())
    heard = wait_for(watch, EventType.EVENT_TYPE_ENDED, created.session.id)
    tell("server B heard ENDED", Cause.Name(heard.cause).removeprefix("CAUSE_"), "LOGOUT")

    try:
        a.GetSession(GetSessionRequest(namespace=NAMESPACE, key=key), timeout=remaining())
        tell("server A answers", "OK", "NOT_FOUND")
    except grpc.RpcError as error:
        tell("server A answers", error.code().name, "NOT_FOUND")
    print("done")


def address(variable: str) -> str:
    if not os.environ.get(variable):
        raise RuntimeError(f"{variable} is not set: host:port of a server")
    return os.environ[variable]


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


def tell(what: str, actual: str, expected: str) -> None:
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
