#!/bin/sh
# Makes .venv: a Python 3.11 or 3.12, the packages that constraints-dev.txt pins by hash, and this
# checkout. `make` runs it first; where everything is in place it does nothing.
#
#     ./setup.sh          makes .venv
#     ./setup.sh uv       prints the path of a uv, installed under build/ if none is on PATH
#
# What always holds:
# - .venv/ready is written last and says for which folder and pins. A .venv that an interrupted
#   setup left behind, that was moved, or whose Python is gone, is made from nothing again.
# - A .venv that somebody else made is used if it works, and never deleted.
# - Packages come from pip as this machine has it configured, checked by hash. Only where no fitting
#   Python is on PATH does uv download one.
set -eu
cd "$(dirname "$0")"
here=$(pwd -P)

fail() {
  echo "setup: $*" >&2
  exit 1
}

# Whether a command is a Python with which a .venv can be made.
fits() {
  "$1" -c 'import sys, venv, ensurepip
sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' >/dev/null 2>&1
}

works() {
  [ -x "$1" ] && "$1" -m pip --version >/dev/null 2>&1
}

# What would install elsewhere, other packages, or fewer than asked. Index, proxy, cache stay.
own_pip() {
  unset PYTHONHOME PYTHONPATH PIP_TARGET PIP_PREFIX PIP_ROOT PIP_PYTHON PIP_REQUIREMENT \
    PIP_CONSTRAINT PIP_BUILD_CONSTRAINT PIP_EDITABLE PIP_REQUIRE_HASHES PIP_NO_DEPS PIP_NO_BINARY \
    PIP_DRY_RUN PIP_IGNORE_INSTALLED PIP_PLATFORM PIP_PYTHON_VERSION PIP_IMPLEMENTATION PIP_ABI
  export PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1
}

# Sets `uv`: the one on PATH, else one of our own. Any Python that has pip can install it.
find_uv() {
  if uv=$(command -v uv); then return; fi
  uv=$here/build/uv/bin/uv
  if "$uv" --version >/dev/null 2>&1; then return; fi
  for any in python3 python python3.15 python3.14 python3.13; do
    "$any" -c 'import venv, ensurepip' >/dev/null 2>&1 || continue
    "$any" -m venv --clear build/uv
    build/uv/bin/python -m pip install --quiet 'uv>=0.9,<1' ||
      fail "expected pip to install uv, which can fetch a Python 3.12; it failed as said above." \
        "Install Python 3.11 or 3.12, or let pip reach a package index"
    return
  done
  fail "expected Python 3.11 or 3.12 with venv on PATH (on Debian and Ubuntu:" \
    "apt-get install python3-venv), or uv to fetch one; found neither"
}

# Sets `python`: the first on PATH that fits, else one that uv has or downloads.
find_python() {
  for python in python3.12 python3.11 python3 python; do
    if fits "$python"; then return; fi
  done
  find_uv
  case $uv in "$here"/*) export UV_PYTHON_INSTALL_DIR="$here/build/python" ;; esac
  export UV_PYTHON_PREFERENCE=only-managed
  if ! python=$("$uv" python find --no-project '>=3.11,<3.13' 2>/dev/null); then
    echo "setup: no Python 3.11 or 3.12 with venv on PATH; uv downloads one" >&2
    "$uv" python install --no-bin '>=3.11,<3.13' ||
      fail "expected uv to download a Python 3.12; it failed as said above. Install Python 3.11" \
        "or 3.12 yourself (on Debian and Ubuntu with python3-venv), and run make again"
    python=$("$uv" python find --no-project '>=3.11,<3.13')
  fi
}

make_venv() {
  if [ -e .venv/ready ] || [ -e .venv/unfinished ]; then
    rm -rf .venv
  elif [ -e .venv ] || [ -L .venv ]; then
    fail "expected .venv to have a Python 3.11 or 3.12 and pip. It was not made here, so it" \
      "stays as it is: move it away, and run make again"
  fi
  find_python
  mkdir .venv
  : >.venv/unfinished
  "$python" -m venv .venv
}

own_pip
if [ "${1:-}" = uv ]; then
  find_uv
  echo "$uv"
  exit
fi

ready="$here
$(cat constraints-dev.txt pyproject.toml setup.sh | cksum)"
is_ready() {
  fits .venv/bin/python && [ "$(cat .venv/ready 2>/dev/null)" = "$ready" ]
}

if is_ready; then exit; fi
if command -v flock >/dev/null; then  # one at a time in this folder
  exec 9<setup.sh
  flock -n 9 || {
    echo "setup: waits for another setup of this folder" >&2
    flock 9
  }
  if is_ready; then exit; fi
fi

if [ -e .venv/ready ] && [ "$(head -n 1 .venv/ready)" != "$here" ] || [ -e .venv/unfinished ] ||
  ! fits .venv/bin/python || ! works .venv/bin/python; then
  make_venv
fi
if [ -e .venv/ready ]; then mv .venv/ready .venv/unfinished; fi
echo "setup: installing packages into .venv; the first time takes a few minutes" >&2
{
  .venv/bin/python -m pip install --quiet --require-hashes -r constraints-dev.txt &&
    .venv/bin/python -m pip install --quiet --no-deps --no-build-isolation -e .
} || fail "expected pip to install the packages of constraints-dev.txt; it failed as said above." \
  "Once it reaches a package index (see 'pip config list'), run make again"
echo "$ready" >.venv/ready
rm -f .venv/unfinished
