#!/usr/bin/env bash
# Builds one agent template: a Debian root as an EROFS image, and template.json that says how to start it.
#
#   rootfs/build.sh [--refresh] NAME     prints the template's directory; --refresh takes Debian's newest packages
#
# A template is data: templates/NAME/template.json (command, environment, user), and if it needs them templates/NAME/packages
# and templates/NAME/setup.sh, on top of base.packages and base-setup.sh. Works as root and, by user namespaces, as anybody.
# Owns the image's format. Does not install it: `make build` does.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=rootfs/cache.sh
source "$here/cache.sh"

SUITE=trixie
# All files get this time (2025-01-01), and the image this UUID: the same packages give the same image, to the bit.
EPOCH=1735689600
UUID=c04ac1e0-0000-4000-8000-000000000001

# Documentation and translations are half of the files, and no agent reads them here.
DPKG_OPTIONS=(
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright'
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/info/*'
    --dpkgopt='path-exclude=/usr/share/lintian/*' --dpkgopt='path-exclude=/usr/share/bug/*'
    --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-include=/usr/share/locale/locale.alias'
    --dpkgopt='path-exclude=/usr/share/docker.io/*' --dpkgopt='path-exclude=/usr/share/nodejs/*/docs/*'
    # containerd's programs for people, and for versions of Docker before this one: 55 MB.
    --dpkgopt='path-exclude=/usr/bin/ctr' --dpkgopt='path-exclude=/usr/bin/containerd-stress'
    --dpkgopt='path-exclude=/usr/bin/containerd-shim' --dpkgopt='path-exclude=/usr/bin/containerd-shim-runc-v1'
)

# Root as far as file ownership goes: the real one, or that of a user namespace.
as_root() {
    if [[ $(id -u) == 0 ]]; then "$@"; else mmdebstrap --unshare-helper "$@"; fi
}

check_tools() {
    local tool
    for tool in mmdebstrap mkfs.erofs python3; do
        [[ -n $(PATH=$PATH:/usr/sbin:/sbin type -P "$tool") ]] || die "$tool is missing; install it with .ci/deps.sh"
    done
    compgen -G "/usr/share/keyrings/debian-archive-$SUITE-automatic.*" >/dev/null ||
        die "Debian's keys for $SUITE are missing; install debian-archive-keyring 2023.3+deb12u2 or newer"
    [[ $(id -u) == 0 ]] || grep -qs "^$(id -un):" /etc/subuid ||
        die "$(id -un) has no range in /etc/subuid; add one: sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $(id -un)"
}

# What this machine trusts, which may be more than Debian's list, for what the setup downloads: a file, perhaps an empty one.
certificates() {
    local file
    for file in "${SSL_CERT_FILE:-}" /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt /dev/null; do
        if [[ -r $file ]]; then cat "$file"; return; fi
    done
}

# The hook gets the setup as text, not as a file, because a user namespace's root may not read the checkout, and for the same
# reason gets other directories.
bootstrap() {
    local tar=$1 packages
    certificates >"$tar.crt"
    packages=$(sed 's/#.*//' "${package_lists[@]}" | xargs | tr ' ' ,)
    # shellcheck disable=SC2016  # $1 and the variable are the hook's
    SETUP=$(cat "${setups[@]}") SOURCE_DATE_EPOCH=$EPOCH TMPDIR=/tmp HOME=/ \
        mmdebstrap --quiet --variant=minbase --include="$packages" "${DPKG_OPTIONS[@]}" \
        --customize-hook="upload '$tar.crt' /trusted.crt" --customize-hook='chroot "$1" bash -euo pipefail -c "$SETUP"' \
        "$SUITE" "$tar" >&2
    rm "$tar.crt"
}

# Reads the root's tar, writes the image. A file whose end is kept with its metadata could not be mapped by programs. Everything
# that this makes belongs to as_root, so it leaves nothing behind.
# shellcheck disable=SC2016  # the whole text is the inner shell's
PACK='set -eu
    PATH=$PATH:/usr/sbin:/sbin
    work=$(mktemp -d /tmp/coracle-rootfs.XXXXXX)
    trap "rm -rf \"$work\"" EXIT
    mkdir "$work/root"
    tar --extract --numeric-owner --xattrs --xattrs-include="security.capability" --exclude="./dev/*" --directory "$work/root"
    mkfs.erofs --quiet "-T$0" "-U$1" -Eforce-inode-compact,noinline_data "$work/image" "$work/root" >&2
    cat "$work/image"'

# template.json as the CLI wants it: what the template says, and what only the build knows.
describe() {
    python3 - "$1" "$2" "$here/templates/$1/template.json" "Debian $SUITE" <<'PYTHON'
import hashlib, json, os, sys
name, out, source = sys.argv[1:4]
image = os.path.join(out, "rootfs.erofs")
with open(image, "rb") as f:
    digest = hashlib.file_digest(f, "sha256").hexdigest()
layers = [{"sha256": digest, "size": os.path.getsize(image)}]
built = {"format": 2, "name": name, "origin": sys.argv[4], "layers": layers}
with open(source) as f:
    built.update(json.load(f))
with open(os.path.join(out, "template.json"), "w") as f:
    json.dump(built, f, indent=2)
    f.write("\n")
PYTHON
}

# The exact versions, to compare two builds by: the suite moves, and the image's own dpkg database is hard to get at.
list_packages() {
    tar --extract --to-stdout --file "$1" ./var/lib/dpkg/status |
        awk '/^Package: /{name=$2} /^Version: /{print name, $2}' | sort
}

build() {
    local out=$1
    say "template $name: Debian $SUITE and its packages (about 400 MB of download, 2 minutes) ..."
    bootstrap "$out/root.tar"
    say "template $name: packing the image ..."
    as_root sh -c "$PACK" "$EPOCH" "$UUID" <"$out/root.tar" >"$out/rootfs.erofs"
    list_packages "$out/root.tar" >"$out/packages.txt"
    rm "$out/root.tar"
    describe "$name" "$out"
}

refresh=no
if [[ ${1:-} == --refresh ]]; then refresh=yes; shift; fi
name=${1:-}
[[ $# == 1 && -f $here/templates/$name/template.json ]] ||
    die "usage: rootfs/build.sh [--refresh] NAME, where NAME is one of: $(ls "$here/templates")"

package_lists=("$here/base.packages")
setups=("$here/base-setup.sh")
if [[ -f $here/templates/$name/packages ]]; then package_lists+=("$here/templates/$name/packages"); fi
if [[ -f $here/templates/$name/setup.sh ]]; then setups+=("$here/templates/$name/setup.sh"); fi

entry=$(cache_entry "template-$name" "$0" "${package_lists[@]}" "${setups[@]}" "$here/templates/$name/template.json")
if [[ $refresh == yes ]]; then rm -rf "$entry"; fi
if [[ ! -d $entry ]]; then check_tools; fi
cache_fill "$entry" build
echo "$entry"
