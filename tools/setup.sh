#!/usr/bin/env bash
# Installs what a clone needs and says what it does. Safe to repeat; the second time takes a moment.
set -euo pipefail
cd "$(dirname "$0")/.."

# program:package pairs; the package is installed when the program is not there.
needs=(
  qemu-system-x86_64:qemu-system-x86
  qemu-system-aarch64:qemu-system-arm
  mmdebstrap:mmdebstrap
  mksquashfs:squashfs-tools
  mkfs.ext4:e2fsprogs
  depmod:kmod
  dpkg-deb:dpkg
  unshare:util-linux
)
[ "$(uname -m)" = x86_64 ] || needs=("${needs[@]/qemu-system-x86_64:qemu-system-x86/}")

# The benchmark's bare floor needs two more.
if [ "${1:-}" = bench ]; then
  needs+=(/bin/busybox:busybox-static cpio:cpio)
fi

say() { printf 'setup: %s\n' "$*"; }

export PATH="$PATH:/usr/sbin:/sbin"
missing=()
for pair in "${needs[@]}"; do
  [ -n "$pair" ] || continue
  command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
done

# The first Python that is new enough, Debian's own before others.
python=""
for candidate in /usr/bin/python3 python3 python3.13 python3.12 python3.11; do
  if command -v "$candidate" >/dev/null &&
    "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    python=$candidate
    break
  fi
done
[ -n "$python" ] || missing+=(python3)
if [ ! -x .venv/bin/python ]; then
  [ -n "$python" ] && "$python" -c 'import ensurepip' 2>/dev/null || missing+=(python3-venv)
fi

if [ ${#missing[@]} -gt 0 ]; then
  apt=(apt-get)
  if [ "$(id -u)" != 0 ]; then
    if command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
      apt=(sudo -n apt-get)
    else
      say "these packages are missing: ${missing[*]}"
      say "ask an administrator for: apt-get install --no-install-recommends ${missing[*]}"
      exit 1
    fi
  fi
  command -v apt-get >/dev/null || { say "no apt-get here; install: ${missing[*]}"; exit 1; }
  say "installing packages: ${missing[*]}"
  "${apt[@]}" -qq update
  DEBIAN_FRONTEND=noninteractive "${apt[@]}" -qq install -y --no-install-recommends \
    "${missing[@]}" >/dev/null
  [ -n "$python" ] || python=python3
fi

if [ ! -x .venv/bin/python ]; then
  say "making .venv with $("$python" --version)"
  "$python" -m venv .venv
fi
stamp=$(sha256sum pyproject.toml | cut -c1-16)
if [ "$(cat .venv/.spore-stamp 2>/dev/null)" != "$stamp" ]; then
  say "installing Python packages into .venv"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
  echo "$stamp" >.venv/.spore-stamp
fi

.venv/bin/python tools/build_guest.py
