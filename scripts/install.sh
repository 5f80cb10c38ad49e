#!/usr/bin/env bash
# Installs a Debian package unless one of its programs is on the PATH: install.sh <package> <program>...
# Does not start the daemons of the package: sessiond runs a private Redis.
set -euo pipefail

package=$1
shift
for program in "$@"; do
  if command -v "$program" >/dev/null; then exit 0; fi
done
if ! command -v apt-get >/dev/null; then
  echo "$1 is required (Redis: 7.0 or newer); install it with the package manager of this system" >&2
  exit 1
fi
as_root=()
if [ "$(id -u)" -ne 0 ]; then as_root=(sudo); fi
echo "Installing the Debian package $package."

# Package scripts run policy-rc.d before they start a daemon. It is removed at the end.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
  "${as_root[@]}" chmod 755 "$policy"
  trap '"${as_root[@]}" rm -f "$policy"' EXIT
fi
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$package" >/dev/null
if [ "$package" = redis-server ] && [ -d /run/systemd/system ]; then
  "${as_root[@]}" systemctl disable --quiet redis-server || true
fi
