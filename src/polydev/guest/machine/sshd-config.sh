#!/bin/busybox sh
# Prints the configuration of sshd, the only access to the machine. sshd listens on the private
# channel, or behind vsock-proxy. boot.sh calls it after machine.env and the addresses exist.
set -eu
. /run/polydev/machine.env

# sshd uses only the first SetEnv directive, so all variables go into one. In its double quotes, a
# backslash escapes a backslash and a double quote. The first value of a variable wins.
set_env() {
    directive=SetEnv
    for file in /run/polydev/environment /usr/share/polydev/environment; do
        while IFS= read -r line || [ -n "$line" ]; do
            case $line in
            '' | '#'*) continue ;;
            esac
            line=${line//\\/\\\\}
            line=${line//\"/\\\"}
            directive="$directive \"$line\""
        done <"$file"
    done
    printf '%s\n' "$directive"
}

listen=127.0.0.1
[ -z "$POLYDEV_CHANNEL_MAC" ] || listen=${POLYDEV_CHANNEL_ADDRESS%/*}

cat <<CONFIG
AddressFamily inet
ListenAddress $listen:22
HostKey /run/polydev/ssh_host_ed25519_key
PidFile /run/sshd.pid
LogLevel ERROR

AllowUsers root
PermitRootLogin prohibit-password
AuthenticationMethods publickey
AuthorizedKeysFile /run/polydev/authorized_keys
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
UseDNS no

AllowTcpForwarding local
AllowStreamLocalForwarding no
AllowAgentForwarding no
X11Forwarding no
PermitTunnel no
PermitUserEnvironment no
PermitUserRC no
PrintMotd no
PrintLastLog no
MaxSessions 100
MaxStartups 100
LoginGraceTime 60
Subsystem sftp internal-sftp
CONFIG
set_env
