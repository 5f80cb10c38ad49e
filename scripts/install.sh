#!/usr/bin/env bash
# Installs redis-server where neither it nor valkey-server is there, and says so first. The packaged daemon is not
# started: sessiond runs a private one.
set -euo pipefail

for program in redis-server valkey-server; do
  if command -v "$program" >/dev/null; then exit 0; fi
done
if ! command -v apt-get >/dev/null; then
  echo "redis-server 7.0 or newer is needed; install it with this system's package manager" >&2
  exit 1
fi
as_root=()
if [ "$(id -u)" -ne 0 ]; then as_root=(sudo); fi
echo "Installing the Debian package redis-server (its daemon is not started)."

# What packages ask before they start a daemon; put away again afterwards.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
  "${as_root[@]}" chmod 755 "$policy"
  trap '"${as_root[@]}" rm -f "$policy"' EXIT
fi
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends redis-server >/dev/null
if [ -d /run/systemd/system ]; then "${as_root[@]}" systemctl disable --quiet redis-server || true; fi
redis-server --version
