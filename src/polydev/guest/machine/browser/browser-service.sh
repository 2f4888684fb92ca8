#!/bin/busybox sh
# The HTTP service that runs one login (src/polydev/guest/browser_service), as root: CLIs keep
# their files in /root, and only root reads its token.
set -eu

[ -d /opt/polydev/browser_service ] || { echo "no browser service in this image"; sleep 3600; }
cd /root
export HOME=/root USER=root DISPLAY=:0 PYTHONPATH=/opt/polydev PYTHONUNBUFFERED=1
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
/usr/bin/python3 -m browser_service 2>&1 | logger -t browser-service
