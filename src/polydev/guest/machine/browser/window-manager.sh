#!/bin/busybox sh
# Sign-in pages open windows of their own; this lets a person move and close them.
set -eu
. /usr/lib/polydev/service

wait_for_display
run_as_browser window-manager openbox
