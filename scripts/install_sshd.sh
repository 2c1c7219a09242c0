#!/usr/bin/env bash
# Installs Debian's openssh-server for the tests of `make launch`, where that is allowed; else the tests skip.
set -euo pipefail
if [ -x /usr/sbin/sshd ] && command -v ssh-keygen >/dev/null; then
    exit 0
fi
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "openssh-server is not installed, and only root can install it (with apt-get)" >&2
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
install=(apt-get install --quiet --quiet --yes --no-install-recommends openssh-server openssh-client)
if ! "${install[@]}" >/dev/null 2>&1; then # the package lists may be missing or old
    apt-get update --quiet --quiet && "${install[@]}" || echo "openssh-server could not be installed" >&2
fi
