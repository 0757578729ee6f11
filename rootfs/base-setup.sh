# shellcheck shell=bash
# What every template gets after its packages: the user, its rights, and the few files that Debian leaves to the installer.
#
# Runs as root inside the new root (mmdebstrap hands it over as text). Owns all that is not from a package. Knows nothing
# of one agent: that is templates/NAME/setup.sh.

# Not from Debian: npm, which is 350 packages there, and uv. Each comes from its registry by a client that checks the hash, and
# moves by a change here. NPM_SHA512 is the registry's "integrity" in hexadecimal.
NPM_VERSION=10.9.9
NPM_SHA512=d60fba8cb42f688b81e33c2f1cbef2ad7b977166700ec0ad057f1b6d60ea6ef2524abf673e20c35931cd8305d1dbb8887134d6eefdc0e7b8435bd458bf65b862
UV_VERSION=0.13.9
UV_SHA256=d7f459fe4fd247d830351c75686d3996ace3c6f3f728eb0e85a30b7ada0cef19

# The build machine's certificates (/trusted.crt) count for these downloads, and are not kept.
fetch() (
    work=$(mktemp -d)
    trap 'rm -rf "$work" /trusted.crt' EXIT
    if [[ -s /trusted.crt ]]; then export {SSL_CERT_FILE,PIP_CERT,NODE_EXTRA_CA_CERTS}=/trusted.crt; fi
    export HOME=$work COREPACK_HOME=$work PIP_ROOT_USER_ACTION=ignore PYTHONPATH
    PYTHONPATH=$(echo /usr/share/python-wheels/pip-*.whl)

    echo "uv==$UV_VERSION --hash=sha256:$UV_SHA256" >"$work/uv.txt"
    python3 -m pip install --quiet --no-cache-dir --no-deps --only-binary :all: --require-hashes --target "$work/uv" -r "$work/uv.txt"
    install -m 0755 "$work"/uv/bin/uv "$work"/uv/bin/uvx /usr/local/bin

    corepack prepare "npm@$NPM_VERSION+sha512.$NPM_SHA512" >/dev/null
    rm -r "$work/npm/$NPM_VERSION/"{docs,man,.corepack}
    mkdir -p /usr/local/lib/node_modules
    cp -r --no-preserve=ownership "$work/npm/$NPM_VERSION" /usr/local/lib/node_modules/npm
    ln -s ../lib/node_modules/npm/bin/npm-cli.js /usr/local/bin/npm
    ln -s ../lib/node_modules/npm/bin/npx-cli.js /usr/local/bin/npx
)
fetch

# The workspace's files show as uid 1000, so the user has it on every host.
groupadd --gid 1000 agent
useradd --uid 1000 --gid 1000 --groups docker --create-home --shell /bin/bash agent
passwd --quiet --lock root
echo 'agent ALL=(ALL:ALL) NOPASSWD: ALL' >/etc/sudoers.d/agent
chmod 0440 /etc/sudoers.d/agent

# The sandbox's name comes from init, and DNS from a listener on the loopback; no listener fails at once, not after 5 s.
echo 'sandbox' >/etc/hostname
printf '127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n' >/etc/hosts
echo 'nameserver 127.0.0.1' >/etc/resolv.conf
chmod 0644 /etc/hostname /etc/resolv.conf

echo 'LANG=C.UTF-8' >/etc/default/locale
# /etc/profile resets PATH and leaves the sbin directories out, which only surprises whoever may use sudo anyway.
cat >/etc/profile.d/coracle.sh <<'PROFILE'
PATH=$HOME/.local/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
PROFILE

# What is installed for all goes where Debian's dpkg does not look, and the user's own where his PATH looks first.
echo 'prefix=/usr/local' >/usr/local/lib/node_modules/npm/npmrc
# shellcheck disable=SC2016  # npm knows the variable
echo 'prefix=${HOME}/.local' >/home/agent/.npmrc
chown agent:agent /home/agent/.npmrc

# Two terminals call themselves by a name that ncurses does not have, though it knows them.
mkdir -p /etc/terminfo/x
ln -s /usr/share/terminfo/k/kitty /etc/terminfo/x/xterm-kitty
ln -s /usr/share/terminfo/g/ghostty /etc/terminfo/x/xterm-ghostty

# One timestamp for all files (the image has no room for more) would make every .pyc look stale, and Python compile again at
# each start. These never look at the source.
python3 -m compileall -q -f -j0 --invalidation-mode unchecked-hash /usr/lib/python3 /usr/lib/python3.* /usr/share/python3

# What differs from build to build, or is made again when it is missed.
rm -rf /var/log/* /var/cache/ldconfig /var/cache/debconf/*-old /var/lib/dpkg/*-old /etc/*- /root/.cache
rm -f /etc/machine-id
