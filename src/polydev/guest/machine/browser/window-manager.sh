#!/bin/busybox sh
# Sign-in pages may open windows; with a window manager, users can move and close them.
set -eu
. /usr/lib/polydev/service

wait_for_display
run_as_browser window-manager openbox
