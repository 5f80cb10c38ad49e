// One session, two servers: server A writes it, server B reads it and receives its events.
package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log"
	"os"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	pb "github.com/sessiond/sessiond/clients/go/sessiond/v1"
)

const content = `user_id=1 cart=["item1","item2"]`

func main() {
	log.SetFlags(0)
	log.SetPrefix("quickstart: ")
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()

	a, b := connect("SESSIOND_A"), connect("SESSIOND_B")
	watcher := connect("SESSIOND_B") // A separate connection: an unread watch blocks other calls on its connection.
	namespace := cmp.Or(os.Getenv("SESSIOND_NAMESPACE"), "quickstart")
	labels := map[string]string{"quickstart": rand.Text()}

	watch := must(watcher.Watch(ctx, &pb.WatchRequest{
		Namespace: namespace, WholeNamespace: true, Labels: labels, View: pb.SessionView_SESSION_VIEW_FULL,
	}))
	must(watch.Recv()) // The first bookmark: the watch is open.

	created := must(a.CreateSession(ctx, &pb.CreateSessionRequest{
		Namespace: namespace, Subject: "1", Labels: labels,
		Attributes: map[string]*pb.AttributeValue{
			"user_id": {Kind: &pb.AttributeValue_IntValue{IntValue: 1}},
			"cart":    {Kind: &pb.AttributeValue_JsonValue{JsonValue: `["item1","item2"]`}},
		},
	}))
	id := created.GetSession().GetId()
	key := &pb.SessionKey{Key: &pb.SessionKey_Token{Token: created.GetToken()}}
	fmt.Println("server A created the session of user", created.GetSession().GetSubject())

	event := waitFor(watch, pb.EventType_EVENT_TYPE_CREATED, id)
	check("server B received CREATED", describe(event.GetSession()), content)

	read := must(b.GetSession(ctx, &pb.GetSessionRequest{Namespace: namespace, Key: key}))
	check("server B read", describe(read.GetSession()), content)

	must(a.DeleteSession(ctx, &pb.DeleteSessionRequest{Namespace: namespace, Key: key}))
	event = waitFor(watch, pb.EventType_EVENT_TYPE_ENDED, id)
	check("server B received ENDED", strings.TrimPrefix(event.GetCause().String(), "CAUSE_"), "LOGOUT")

	_, err := a.GetSession(ctx, &pb.GetSessionRequest{Namespace: namespace, Key: key})
	check("server A returned", code.Code(status.Code(err)).String(), "NOT_FOUND")
	fmt.Println("done")
}

func connect(variable string) pb.SessionServiceClient {
	address := os.Getenv(variable)
	if address == "" {
		log.Fatalf("%s is not set: host:port of a server", variable)
	}
	return pb.NewSessionServiceClient(must(grpc.NewClient(address, security()...)))
}

// security returns the options of a connection: TLS with the API key and the client certificate, if SESSIOND_CA is set.
func security() []grpc.DialOption {
	ca, keyFile, certificate := os.Getenv("SESSIOND_CA"), os.Getenv("SESSIOND_API_KEY_FILE"), os.Getenv("SESSIOND_CERT")
	switch {
	case ca == "" && keyFile != "":
		log.Fatal("SESSIOND_API_KEY_FILE needs SESSIOND_CA")
	case ca == "" && certificate != "":
		log.Fatal("SESSIOND_CERT needs SESSIOND_CA")
	case ca == "":
		return []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())}
	}
	config := &tls.Config{RootCAs: x509.NewCertPool()}
	if !config.RootCAs.AppendCertsFromPEM(must(os.ReadFile(ca))) {
		log.Fatalf("%s contains no certificate", ca)
	}
	if certificate != "" {
		config.Certificates = []tls.Certificate{must(tls.LoadX509KeyPair(certificate, os.Getenv("SESSIOND_KEY")))}
	}
	options := []grpc.DialOption{grpc.WithTransportCredentials(credentials.NewTLS(config))}
	if keyFile != "" {
		key := apiKey(strings.TrimSpace(string(must(os.ReadFile(keyFile)))))
		options = append(options, grpc.WithPerRPCCredentials(key))
	}
	return options
}

// apiKey is a key that every call sends, over TLS only.
type apiKey string

func (key apiKey) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(key)}, nil
}

func (apiKey) RequireTransportSecurity() bool { return true }

func waitFor(watch pb.SessionService_WatchClient, eventType pb.EventType, id string) *pb.SessionEvent {
	for {
		response, err := watch.Recv()
		if err != nil {
			log.Fatalf("watch for %v: %v", eventType, err)
		}
		for _, event := range response.GetEvents() {
			if event.GetType() == eventType && event.GetId() == id {
				return event
			}
		}
	}
}

func describe(session *pb.Session) string {
	attributes := session.GetAttributes()
	return fmt.Sprintf("user_id=%d cart=%s", attributes["user_id"].GetIntValue(), attributes["cart"].GetJsonValue())
}

func check(what, actual, expected string) {
	if actual != expected {
		log.Fatalf("%s: %s, expected %s", what, actual, expected)
	}
	fmt.Printf("%s: %s\n", what, actual)
}

func must[T any](value T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return value
}
