# shellcheck shell=bash
# What every template gets after its packages: the user, its rights, and the few files that Debian leaves to the installer.
#
# Runs as root inside the new root (mmdebstrap hands it over as text). Owns all that is not from a package. Knows nothing
# of one agent: that is templates/NAME/setup.sh.

# The workspace's files show as uid 1000, so the user has it on every host.
groupadd --gid 1000 agent
useradd --uid 1000 --gid 1000 --create-home --shell /bin/bash agent
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
