# Sourced by the other scripts: installs what is missing and makes the virtual environment.

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

need_root() { [ "$(id -u)" = 0 ] || { echo "$0: run it as root (sudo $0)" >&2; exit 8; }; }

need_fuse() {
  [ -e /dev/fuse ] || modprobe fuse 2>/dev/null || true
  [ -e /dev/fuse ] && return
  echo "$0: there is no /dev/fuse, and 'modprobe fuse' did not bring it: load the module on the machine" \
    "(apt-get install kmod; modprobe fuse), or give the container the device" >&2
  exit 8
}

# install PACKAGE...: the Debian packages that are not there yet.
install() {
  local missing=() package
  for package in "$@"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q ' installed$' || missing+=("$package")
  done
  [ ${#missing[@]} = 0 ] && return
  echo "installing: ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# environment [EXTRA]: a virtual environment in .venv with fusejournal from this checkout, made anew only when
# pyproject.toml has changed; when a compiled module has changed, fusejournal alone is installed again. Needs the compiler
# because pyfuse3 comes as source, and for those modules.
environment() {
  install fuse3 libfuse3-dev pkg-config gcc libc6-dev python3 python3-dev python3-venv
  local stamp
  stamp="$(sha256sum "$here/pyproject.toml" | cut -d' ' -f1) $here ${1:-} ${FUSEJOURNAL_PURE:-}"
  if [ "$(cat "$here/.venv/stamp" 2>/dev/null)" != "$stamp" ]; then
    echo "making the virtual environment"
    rm -rf "$here/.venv"
    /usr/bin/python3 -m venv "$here/.venv"
    "$here/.venv/bin/pip" install -q --disable-pip-version-check -e "$here${1:+[$1]}"
    echo "$stamp" >"$here/.venv/stamp"
  elif ! (cd "$here" && .venv/bin/python -c 'import fusejournal') 2>/dev/null; then
    echo "compiling what has changed"
    "$here/.venv/bin/pip" install -q --disable-pip-version-check --no-deps -e "$here"
  fi
}
