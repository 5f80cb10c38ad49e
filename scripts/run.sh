#!/usr/bin/env bash
# Starts the service, waits until it listens, and prints example commands. Exits with the exit code of the service.
set -euo pipefail

program=$1
shift
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# The terminal sends an interrupt to the service as well; this script waits for its exit.
trap : INT
trap 'kill -TERM "$service"' TERM
"$program" serve "$@" > >(tee "$log") 2>&1 &
service=$!

address=
while [ -z "$address" ]; do
  if ! kill -0 "$service" 2>/dev/null; then
    code=0
    wait "$service" || code=$?
    exit "$code"
  fi
  address=$(sed -n 's/.*listening.* address=\([^ ]*\).*/\1/p; s/.*"listening".*"address":"\([^"]*\)".*/\1/p' "$log" | head -n 1)
  sleep 0.05
done
grpcurl=grpcurl
command -v grpcurl >/dev/null || grpcurl=.tools/grpcurl
cat <<END

sessiond serves gRPC on $address. In another terminal (make tools installs grpcurl):

  $grpcurl -plaintext -d '{"namespace":"web","whole_namespace":true}' $address sessiond.v1.SessionService/Watch
  $grpcurl -plaintext -d '{"namespace":"web","subject":"1","attributes":{"cart":{"json_value":"[\"item1\",\"item2\"]"}}}' $address sessiond.v1.SessionService/CreateSession
  $grpcurl -plaintext -d '{"namespace":"web"}' $address sessiond.v1.SessionService/ListSessions

Press Ctrl-C to stop it.

END
code=0
while :; do
  wait "$service" && code=0 || code=$?
  kill -0 "$service" 2>/dev/null || break
done
exit "$code"
