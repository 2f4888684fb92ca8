#!/bin/busybox sh
# Runs the display of a browser machine: an X server with VNC output on loopback. It needs no
# password, because only the host's private channel can reach 127.0.0.1 from outside.
set -eu
. /usr/lib/polydev/service

rm -f "$X_SOCKET" /tmp/.X0-lock
mkdir -p -m 1777 /tmp/.X11-unix
run_as_browser display Xtigervnc "$DISPLAY" -geometry 1280x800 -depth 24 \
    -rfbport 5900 -localhost=1 -UseIPv6=0 -SecurityTypes None -AlwaysShared \
    -nolisten tcp -extension GLX -desktop "$(hostname)"
