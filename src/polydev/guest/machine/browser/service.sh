# Sourced by the services of a browser machine.

DISPLAY=:0
X_SOCKET=/tmp/.X11-unix/X0

# Runs the rest of a service as the unprivileged user, without root's environment, and with its
# output in the machine's log: that is a ring in memory (`logread`), however much they say.
run_as_browser() {
    name=$1
    shift
    cd /home/browser
    env -i "DISPLAY=$DISPLAY" HOME=/home/browser USER=browser LANG=C.UTF-8 \
        PATH=/usr/local/bin:/usr/bin:/bin \
        /usr/bin/setpriv --reuid=browser --regid=browser --init-groups --no-new-privs -- "$@" 2>&1 |
        logger -t "$name"
}

# X takes connections as soon as its socket is there, and has no way to tell several programs.
wait_for_display() {
    until [ -S "$X_SOCKET" ]; do
        usleep 50000
    done
}
