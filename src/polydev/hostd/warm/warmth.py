"""Browser machines whose browser is up when they are asked for: clones of a template.

`machines.py` asks for one before it boots any browser machine, and boots when there is none to be
had, for whatever reason. In the background a template is made for the machines that are asked for,
when nothing else is going on and the host has the memory; one that fails its clones is thrown away.
`server.py` and `diagnosis.py` tell how it stands.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from dataclasses import dataclass

from polydev.domain import MachineKind, MachineState
from polydev.errors import BadSettings, MissingImage, PolydevError
from polydev.hostapi import Warmth
from polydev.hostd.machine import PreparedMachine, RunningMachine, prepare, unplaced
from polydev.hostd.problems import problem_of
from polydev.hostd.record import MachineRecord
from polydev.hostd.roster import Roster
from polydev.hostd.site import Site
from polydev.hostd.snapshots import MemoryKeys
from polydev.hostd.warm import nobodys
from polydev.hostd.warm.cloning import renewed, restored
from polydev.hostd.warm.making import fits, make
from polydev.hostd.warm.room import Room
from polydev.hostd.warm.templates import Shape, Template, Templates

log = logging.getLogger("polydev.hostd")

_FAILURES = 2
"""So many clones in a row may fail before their template is thrown away."""
_SHARE = 1 / 3
"""Of the time that a machine may take: for the clone, so that there is enough left to boot."""
_LOOK_S = 5.0
_MAKE_LIMIT_S = 600.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 300.0, 6 * 3600.0
"""After a template that could not be made; twice as long each time."""
_SETTLED = (MachineState.RUNNING, MachineState.STOPPED, MachineState.HIBERNATED, MachineState.FAILED)


@dataclass(frozen=True, slots=True)
class Policy:
    """What the settings say."""

    is_on: bool
    quiet_s: float
    """How long no machine was made or changed, and no browser machine ran, before a template is
    made."""


class Warmth:  # noqa: F811 - replaced below
    pass
