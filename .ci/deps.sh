#!/usr/bin/env bash
# Installs the programs that building and testing Coracle takes, as far as they are missing. `make` calls it first.
#
#   .ci/deps.sh
#
# Owns the list of what is needed from the system's packages. Uses apt as root or by sudo; elsewhere, and where it may not,
# it prints the command to run. Does not install Rust, and touches nothing when nothing is missing.
set -euo pipefail

# command, then the package that has it: Debian and Ubuntu (apt), Fedora (dnf), Arch (pacman). "a/path" is a file, not a command.
NEEDED='
cc                      gcc                     gcc                     gcc
make                    make                    make                    make
git                     git                     git                     git
curl                    curl                    curl                    curl
python3                 python3                 python3                 python
flex                    flex                    flex                    flex
bison                   bison                   bison                   bison
bc                      bc                      bc                      bc
patch                   patch                   patch                   patch
xz                      xz-utils                xz                      xz
strip                   binutils                binutils                binutils
/usr/include/libelf.h   libelf-dev              elfutils-libelf-devel   libelf
mmdebstrap              mmdebstrap              mmdebstrap              mmdebstrap
newuidmap               uidmap                  shadow-utils            shadow
/usr/share/keyrings/debian-archive-keyring.gpg debian-archive-keyring debian-keyring debian-archive-keyring
mkfs.erofs              erofs-utils             erofs-utils             erofs-utils
mke2fs                  e2fsprogs               e2fsprogs               e2fsprogs
qemu-system-x86_64      qemu-system-x86         qemu-system-x86-core    qemu-system-x86
shellcheck              shellcheck              ShellCheck              shellcheck
'

say() { printf '%s\n' "$*" >&2; }
PATH=$PATH:/usr/sbin:/sbin

have() { if [[ $1 == /* ]]; then [[ -e $1 ]]; else type -P "$1" >/dev/null; fi; }

# The packages of what is missing, by the column of the package manager's names.
missing_packages() {
    local column=$1 need names
    while read -r need names; do
        [[ -z $need ]] || have "$need" || awk -v column="$column" '{ print $column }' <<<"$names"
    done <<<"$NEEDED" | sort -u
}

# The command that makes us root, or nothing where we are it. sudo must not wait for a password that nobody will type.
root_command() {
    if [[ $(id -u) == 0 ]]; then return; fi
    type -P sudo >/dev/null || return 1
    if [[ -t 0 ]]; then echo sudo; elif sudo -n true 2>/dev/null; then echo sudo -n; else return 1; fi
}

apt_install() {
    local root
    # Debian's own tools ask nothing that matters here.
    local install=(env DEBIAN_FRONTEND=noninteractive apt-get install --yes -qq -o Dpkg::Use-Pty=0 --no-install-recommends "$@")
    if ! root=$(root_command); then
        say "error: missing packages, and no right to install them. Run: sudo apt-get install --no-install-recommends $*"
        exit 1
    fi
    say "deps: installing $* (apt; up to two minutes) ..."
    # shellcheck disable=SC2086  # none, one or two words
    $root "${install[@]}" >&2 || { $root apt-get update -qq >&2 && $root "${install[@]}" >&2; }
}

if ! type -P cargo >/dev/null; then
    say "error: Rust is missing. Install it from https://rustup.rs, then run this again"
    exit 1
fi

if type -P apt-get >/dev/null; then
    mapfile -t packages < <(missing_packages 1)
    if ((${#packages[@]} > 0)); then apt_install "${packages[@]}"; fi
    exit
fi

mapfile -t fedora < <(missing_packages 2)
mapfile -t arch < <(missing_packages 3)
if ((${#fedora[@]} > 0)); then
    say "error: programs are missing. Run one of"
    say "    sudo dnf install ${fedora[*]}"
    say "    sudo pacman -S ${arch[*]}"
    say "or install the like of them from your distribution or its users' repository."
    exit 1
fi
