# Sourced by the services of a browser machine.

DISPLAY=:0
X_SOCKET=/tmp/.X11-unix/X0

# Runs a command as the unprivileged user, without root's environment. Its output goes to the
# machine's log, a ring buffer in memory (`logread`).
run_as_browser() {
    name=$1
    shift
    cd /home/browser
    env -i "DISPLAY=$DISPLAY" HOME=/home/browser USER=browser LANG=C.UTF-8 \
        PATH=/usr/local/bin:/usr/bin:/bin \
        /usr/bin/setpriv --reuid=browser --regid=browser --init-groups --no-new-privs -- "$@" 2>&1 |
        logger -t "$name"
}

# X accepts connections as soon as its socket exists; there is no other signal.
wait_for_display() {
    until [ -S "$X_SOCKET" ]; do
        usleep 50000
    done
}
