#!/bin/busybox sh
# Runs the browser service (src/polydev/guest/browser_service) as root: CLIs store their files in
# /root, and only root can read the token.
set -eu

[ -d /opt/polydev/browser_service ] || { echo "no browser service in this image"; sleep 3600; }
cd /root
export HOME=/root USER=root DISPLAY=:0 PYTHONPATH=/opt/polydev PYTHONUNBUFFERED=1
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
/usr/bin/python3 -m browser_service 2>&1 | logger -t browser-service
