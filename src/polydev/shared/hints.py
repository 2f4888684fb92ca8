"""Hints that name commands, settings or API calls, for users of any interface.

Code that raises an error knows what is wrong, but not how users control Polydev. It picks a member
and fills in the placeholders; the wording is decided here.
"""

from __future__ import annotations

from enum import StrEnum


class Hint(StrEnum):
    """Hint with placeholders, such as `{kind}`."""

    # Diagnosis
    RUN_DOCTOR = "Run `polydev doctor` to find the cause"
    RETRY_OR_RUN_DOCTOR = "Try again later, or run `polydev doctor` to find the cause"
    CHECK_HOST_AGENT = "Check the host agent with `polydev doctor`"
    SEE_DRIVER = "See what `polydev doctor` reports about the driver"
    SEE_CONSOLE = "See its output with `polydev machine console {vm_id}`, or restart the machine"
    SEE_CLI_STATUS = "See the reason with `polydev machine exec {vm_id} -- {command}`"

    # Accounts and sign-in
    RESET_PASSWORD = "Run `polydev user password` on the controller's machine"  # noqa: S105
    SIGN_IN_CALL = "Sign in with POST /api/account/sign-in"
    GET_CSRF_TOKEN = "Get it from GET /api/account; in scripts, use an API token instead"  # noqa: S105
    LIST_API_TOKENS = "List yours with GET /api/account/tokens"
    LIST_SIGN_INS = "List yours with GET /api/account/sign-ins"
    SET_OIDC_ISSUER = "An administrator can set POLYDEV_OIDC_ISSUER"
    SET_PUBLIC_URL = "Open {url}, or set POLYDEV_PUBLIC_URL to the URL that you use"
    USE_LOOPBACK = (
        "Use http://127.0.0.1 or http://localhost with the controller's port, or set "
        "POLYDEV_PUBLIC_URL to the name that you use"
    )

    # Machines, credentials and images
    CONNECT_CLI = "Run `polydev connect {provider}`"
    LIST_MACHINES = "List your machines with `polydev machine list`"
    RECREATE_MACHINE = "Destroy it with `polydev machine destroy {vm_id}`, and create another"
    FREE_MACHINE_DISK = "Free some space with `polydev machine exec <machine> sh`"
    LIST_CREDENTIALS = "List the credentials with `polydev credential list`"
    BUILD_IMAGE = "Build it with `polydev image build {kind}`"
    LIST_IMAGES = "List the images with `polydev image list`"
    UNPIN_IMAGE = "Use the current image with `polydev image use --newest {kind}`"
    FREE_HOST_DISK = (
        "Destroy unused machines, remove old images (`polydev image prune`), or move "
        "POLYDEV_STATE_DIR to a larger disk"
    )
    SET_IMAGES_DIR = "Free some space there, or set POLYDEV_IMAGES_DIR to a folder on a larger disk"

    # Keys and database
    LIST_KEYS = "List the keys with `polydev key list`"
    ROTATE_KEYS = "Encrypt it with the current key: `polydev key rotate`"
    ADD_OTHER_KEY = "Add that key to POLYDEV_OTHER_ENCRYPTION_KEYS, and rotate again"
    ADD_OTHER_KEY_OR_RESTART = (
        "Add that key to POLYDEV_OTHER_ENCRYPTION_KEYS, or start Polydev with the ENCRYPTION_KEY "
        "that created this database"
    )
    USE_FIRST_KEY = (
        "Start Polydev with the ENCRYPTION_KEY that created this database. For a new key, keep the "
        "old one in POLYDEV_OTHER_ENCRYPTION_KEYS until everything is encrypted with the new one"
    )
    CHECK_DATABASE_URL = "Check that it runs and that DATABASE_URL is right"
    CHECK_STATE_SETTINGS = "Check POLYDEV_STATE_DIR and DATABASE_URL"
    RESTART_TO_CLEAN_UP = (
        "Restart Polydev, so that the host agent removes it: `polydev down`, then `polydev up`"
    )
    RESTART_POLYDEV = "Restart Polydev to migrate it: `polydev down`, then `polydev up`"

    # Hosts and processes
    LIST_HOSTS = "POLYDEV_HOSTS lists the hosts"
    LIST_HOSTS_OR_DEFAULT = (
        "POLYDEV_HOSTS lists the hosts. If it is not set, the only host is the controller's machine"
    )
    USE_SMALLER_MACHINES = (
        "Use smaller machines (POLYDEV_CLI_MEMORY_MIB, POLYDEV_BROWSER_MEMORY_MIB), or add a "
        "larger host"
    )
    RAISE_HOST_MEMORY = (
        "Hibernate, stop or destroy a machine, or raise POLYDEV_HOST_MEMORY_MIB or "
        "POLYDEV_MEMORY_OVERCOMMIT"
    )
    SET_PORT = "Stop that program, or set PORT to another port"
    SET_STATE_DIR = "Stop it, or set POLYDEV_STATE_DIR to another folder"
    SET_NETNS = "Stop it, or set POLYDEV_NETNS to another name"
    SET_SUBNET = "Destroy machines, or set POLYDEV_SUBNET to a larger network"
    SET_DNS = "Set POLYDEV_DNS to a resolver that this host reaches; machines can use no other"
    SET_EGRESS_PROXY = "Set POLYDEV_EGRESS_PROXY to http://<IPv4 address>:<port>"
    SUBNET_IS = "POLYDEV_SUBNET is {subnet}"
    SET_MEMORY_KEY_DIR = "Mount a tmpfs at /run, or set POLYDEV_MEMORY_KEY_DIR to one"
    REPLACE_MEMORY_KEY_DIR = "Remove {folder}, or set POLYDEV_MEMORY_KEY_DIR to another folder"
    INSTALL_FIRECRACKER = "Install Firecracker {version} or newer, or set POLYDEV_{program}"
    SET_ASSETS_DIR = "Run `make setup`, or set POLYDEV_ASSETS_DIR to the folder of the assets"

    def text(self, **data: object) -> str:
        """Fill in the placeholders."""
        return self.value.format(**data)
