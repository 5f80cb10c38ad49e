package quickstart;

import dev.sessiond.v1.*;
import dev.sessiond.v1.SessionServiceGrpc.SessionServiceBlockingStub;
import io.grpc.CallCredentials;
import io.grpc.ChannelCredentials;
import io.grpc.CompositeChannelCredentials;
import io.grpc.Deadline;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.Metadata;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.TlsChannelCredentials;
import java.io.File;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Iterator;
import java.util.UUID;
import java.util.concurrent.Executor;
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
        } catch (IOException | RuntimeException e) {
            System.err.println("quickstart: " + e.getMessage());
            System.exit(1);
        }
    }

    private static void quickstart() throws IOException {
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

    private static SessionServiceBlockingStub connect(String variable) throws IOException {
        var address = environment(variable);
        if (address.isEmpty()) {
            throw new IllegalStateException(variable + " is not set: host:port of a server");
        }
        var channel = Grpc.newChannelBuilder(address, credentials()).build();
        return SessionServiceGrpc.newBlockingStub(channel).withDeadline(END);
    }

    /** Returns the credentials of a channel: TLS with the API key, if SESSIOND_CA is set. */
    private static ChannelCredentials credentials() throws IOException {
        var ca = environment("SESSIOND_CA");
        var keyFile = environment("SESSIOND_API_KEY_FILE");
        if (ca.isEmpty()) {
            if (!keyFile.isEmpty()) {
                throw new IllegalStateException("SESSIOND_API_KEY_FILE needs SESSIOND_CA");
            }
            return InsecureChannelCredentials.create();
        }
        var tls = TlsChannelCredentials.newBuilder().trustManager(new File(ca)).build();
        return keyFile.isEmpty()
                ? tls
                : CompositeChannelCredentials.create(tls, bearer(Files.readString(Path.of(keyFile)).strip()));
    }

    /** Returns credentials that add the API key to every call. */
    private static CallCredentials bearer(String key) {
        if (!key.matches("[!-~]+")) { // gRPC would print such a key in a warning.
            throw new IllegalStateException("the file of SESSIOND_API_KEY_FILE is not one line with a key");
        }
        var headers = new Metadata();
        headers.put(Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER), "Bearer " + key);
        return new CallCredentials() {
            @Override
            public void applyRequestMetadata(RequestInfo call, Executor executor, MetadataApplier applier) {
                applier.apply(headers);
            }
        };
    }

    private static String environment(String variable) {
        return System.getenv().getOrDefault(variable, "");
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
