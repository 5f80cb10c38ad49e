package quickstart;

import dev.sessiond.v1.*;
import dev.sessiond.v1.SessionServiceGrpc.SessionServiceBlockingStub;
import io.grpc.Deadline;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import java.util.Iterator;
import java.util.UUID;
import java.util.concurrent.TimeUnit;

/** One session, two servers: server A writes it, server B reads it and receives its events. */
public final class Quickstart {
    private static final String NAMESPACE = System.getenv().getOrDefault("SESSIOND_NAMESPACE", "quickstart");
    private static final String CONTENT = "user_id=1 cart=[\"item1\",\"item2\"]";
    private static final Deadline END = Deadline.after(10, TimeUnit.SECONDS);

    public static void main(String[] arguments) {
        try {
            quickstart();
            System.exit(0);
        } catch (RuntimeException e) {
            System.err.println("quickstart: " + e.getMessage());
            System.exit(1);
        }
    }

    private static void quickstart() {
        var a = connect("SESSIOND_A");
        var b = connect("SESSIOND_B");
        var watcher = connect("SESSIOND_B"); // A separate channel: an unread watch blocks other calls on its channel.
        var label = UUID.randomUUID().toString();

        var watch = watcher.watch(WatchRequest.newBuilder()
                .setNamespace(NAMESPACE).setWholeNamespace(true).putLabels("quickstart", label)
                .setView(SessionView.SESSION_VIEW_FULL).build());
        watch.next(); // The first bookmark: the watch is open.

        var created = a.createSession(CreateSessionRequest.newBuilder()
                .setNamespace(NAMESPACE).setSubject("1").putLabels("quickstart", label)
                .putAttributes("user_id", AttributeValue.newBuilder().setIntValue(1).build())
                .putAttributes("cart", AttributeValue.newBuilder().setJsonValue("[\"item1\",\"item2\"]").build())
                .build());
        var id = created.getSession().getId();
        var key = SessionKey.newBuilder().setToken(created.getToken()).build();
        System.out.println("server A created the session of user " + created.getSession().getSubject());

        var event = waitFor(watch, EventType.EVENT_TYPE_CREATED, id);
        check("server B received CREATED", describe(event.getSession()), CONTENT);

        var get = GetSessionRequest.newBuilder().setNamespace(NAMESPACE).setKey(key).build();
        check("server B read", describe(b.getSession(get).getSession()), CONTENT);

        a.deleteSession(DeleteSessionRequest.newBuilder().setNamespace(NAMESPACE).setKey(key).build());
        event = waitFor(watch, EventType.EVENT_TYPE_ENDED, id);
        check("server B received ENDED", event.getCause().name().replaceFirst("^CAUSE_", ""), "LOGOUT");

        var code = Status.Code.OK;
        try {
            a.getSession(get);
        } catch (StatusRuntimeException e) {
            code = e.getStatus().getCode();
        }
        check("server A returned", code.name(), "NOT_FOUND");
        System.out.println("done");
    }

    private static SessionServiceBlockingStub connect(String variable) {
        var address = System.getenv(variable);
        if (address == null || address.isEmpty()) {
            throw new IllegalStateException(variable + " is not set: host:port of a server");
        }
        var channel = Grpc.newChannelBuilder(address, InsecureChannelCredentials.create()).build();
        return SessionServiceGrpc.newBlockingStub(channel).withDeadline(END);
    }

    private static SessionEvent waitFor(Iterator<WatchResponse> watch, EventType type, String id) {
        while (watch.hasNext()) {
            for (var event : watch.next().getEventsList()) {
                if (event.getType() == type && event.getId().equals(id)) {
                    return event;
                }
            }
        }
        throw new IllegalStateException("the watch ended before " + type);
    }

    private static String describe(Session session) {
        var none = AttributeValue.getDefaultInstance();
        var userId = session.getAttributesOrDefault("user_id", none);
        var cart = session.getAttributesOrDefault("cart", none);
        return "user_id=" + userId.getIntValue() + " cart=" + cart.getJsonValue();
    }

    private static void check(String what, String actual, String expected) {
        if (!actual.equals(expected)) {
            throw new IllegalStateException(what + ": " + actual + ", expected " + expected);
        }
        System.out.println(what + ": " + actual);
    }
}
