"""`guest/warm/renew.pl` gives a clone its own identity. Runs as root in namespaces."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from polydev.hostagent.provisioning.config_drive import MachineConfig, config_drive
from polydev.shared.domain import MachineKind

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")

WARM = Path(__file__).parents[4] / "src/polydev/guest/warm"
SEED = bytes(range(64)) + b"1795846203.000000000\n"
CONFIG = MachineConfig(
    vm_id="vm-01234567-89ab-cdef-0123-456789abcdef",
    kind=MachineKind.BROWSER,
    hostname="vm-01234567",
    address="192.168.100.9/24",
    mac="02:01:c0:a8:64:09",
    gateway="192.168.100.1",
    dns=("8.8.8.8", "1.1.1.1"),
    channel_mac="02:02:c0:a8:64:09",
    ready_nonce="00",
    clock_s=1,
    host_key=b"a private key\n" * 50,
    authorized_key="ssh-ed25519 AAAA one",
    environment={"HTTPS_PROXY": "http://192.0.2.1:3128"},
    ca_pem=b"an authority\n",
    token="its own token",
)
# A guest's folders, a NIC, an sshd that restarts, and a program that marks memory.
PLACE = """
set -e
mount --make-rprivate /
mount -t tmpfs run /run
mkdir -p /run/warm /run/polydev /run/etc/upper /run/etc/work
mount -t overlay -o lowerdir=/etc,upperdir=/run/etc/upper,workdir=/run/etc/work etc /etc
ip link add lan type veth peer name other
echo lan >/run/warm/lan
: >/run/warm/tabs
perl -e '
    sub up { open my $f, ">", "/run/sshd.pid"; print $f "$$\\n" }
    $SIG{HUP} = sub { up() };
    up();
    sleep 60 for 1 .. 2;
' </dev/null >/dev/null 2>&1 &
python3 -c '
import mmap, sys, time
page = mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
page.madvise(18)
page[:] = b"x" * len(page)
open("/run/marked", "w").write("yes")
while page[0]:
    time.sleep(0.02)
open("/run/wiped", "w").write(str(sum(page[:])))
time.sleep(60)
' </dev/null >/dev/null 2>&1 &
marks=$!
until [ -e /run/marked ] && [ -s /run/sshd.pid ]; do sleep 0.02; done
sed -n "/^[0-9a-f]*-[0-9a-f]* /{s/ .*//;h};/^VmFlags:.* wf/{x;s/^/$marks /;p}" \
    /proc/$marks/smaps >/run/warm/pages
perl -e "$1" polydev-renew
until [ -s /run/wiped ]; do sleep 0.02; done
"""
RENAME = """
cp -a /run/polydev /run/before
perl -e "$1" polydev-renew rename <"$2"
"""
REPORT = """
echo "hostname=$(hostname)" "file=$(cat /etc/hostname)" "id=$(cat /etc/machine-id)"
echo "wiped=$(cat /run/wiped)" "warm=$(ls -d /run/warm 2>/dev/null)"
ip -o addr show lan
ip -o link show lan
ip route
for file in /run/polydev/*; do stat -c "%n %a %s" $file; done
cat /run/polydev/token
"""


_APART = ("unshare", "-mnu", "--fork", "--pid", "--mount-proc", "--kill-child")


def renewed(given: bytes, *, more: Sequence[str] = ()) -> subprocess.CompletedProcess[bytes]:
    """Run the script in namespaces of its own, which end with it.

    `more`: a second script and its arguments.
    """
    script = (WARM / "renew.pl").read_text()
    # Namespaces share the clock of this computer.
    script = script.replace("set_clock($clock);\n", "")
    return subprocess.run(
        [*_APART, "bash", "-c", PLACE + "".join(more[:1]) + REPORT, "bash", script, *more[1:]],
        input=given,
        capture_output=True,
        timeout=60,
        check=False,
    )


def test_clone_gets_its_own_identity() -> None:
    ended = renewed(SEED + config_drive(CONFIG))
    output = ended.stdout.decode()
    assert ended.returncode == 0, ended.stderr.decode()
    assert "hostname=vm-01234567 file=vm-01234567 id=0123456789abcdef0123456789abcdef" in output
    assert "inet 192.168.100.9/24" in output
    assert "link/ether 02:01:c0:a8:64:09" in output
    assert "default via 192.168.100.1 dev lan" in output
    assert re.search(r"/run/polydev/ssh_host_ed25519_key 600 700\n", output)
    assert "/run/polydev/token 600 13\n" in output
    assert output.endswith("its own token")
    assert not re.search(r"\.new ", output)


def test_inherited_random_state_is_wiped() -> None:
    output = renewed(SEED + config_drive(CONFIG)).stdout.decode()
    assert "wiped=0 warm=\n" in output


def test_standby_clone_gets_name_and_token(tmp_path: Path) -> None:
    named = dataclasses.replace(
        CONFIG,
        vm_id="vm-fedcba98-7654-3210-fedc-ba9876543210",
        hostname="vm-fedcba98",
        token="somebody's token",
    )
    drive = tmp_path / "drive"
    drive.write_bytes(SEED + config_drive(named))
    ended = renewed(SEED + config_drive(CONFIG), more=(RENAME, str(drive)))
    output = ended.stdout.decode()
    assert ended.returncode == 0, ended.stderr.decode()
    assert "hostname=vm-fedcba98 file=vm-fedcba98 id=fedcba9876543210fedcba9876543210" in output
    assert output.count("inet 192.168.100.9/24") == 1
    assert output.endswith("somebody's token")


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (b"", "there is no config drive"),
        (SEED, "there is no config drive"),
        (SEED + bytes(1024), "holds no machine.env"),
        (SEED + config_drive(CONFIG)[:700], "machine.env is cut short"),
        (SEED + config_drive(CONFIG)[:2048], "holds no|is cut short"),
        (SEED + config_drive(CONFIG).replace(b"authorized_keys", b"../../etc/passw"), "is called"),
    ],
)
def test_invalid_config_drive_is_refused(given: bytes, why: str) -> None:
    ended = renewed(given)
    assert ended.returncode != 0
    assert re.search(why, ended.stderr.decode())
