"""Pool of this controller's agents: one for each CLI in a machine, while its chats are used.

Turns lease agents. An agent without leases stops after a while, since it uses its machine's
memory; it stops immediately if another CLI needs its place.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from polydev.controller.chat.acp.agent import Agent
from polydev.controller.settings import ControllerSettings
from polydev.shared.domain import Machine, VmId
from polydev.shared.errors import NoCapacity
from polydev.shared.host_client import HostClients
from polydev.shared.providers import Provider

_Key = tuple[VmId, str]


class AgentPool:
    """Starts agents on demand and stops idle ones."""

    def __init__(
        self, hosts: HostClients, settings: ControllerSettings, on_ended: Callable[[Agent], None]
    ) -> None:
        """`on_ended` is called with each agent that has ended."""
        self._hosts = hosts
        self._settings = settings
        self._on_ended = on_ended
        self._agents: dict[_Key, Agent] = {}
        """Least recently used first."""
        self._stopping: set[Agent] = set()
        self._idle_timers: dict[Agent, asyncio.TimerHandle] = {}

    @asynccontextmanager
    async def lease(self, machine: Machine, about: Provider) -> AsyncIterator[Agent]:
        """Hold the CLI's agent in a machine, and prevent the pool from stopping it.

        Raises: NoCapacity; HostUnreachable, ChannelLost, ChatFailed if it does not start.
        """
        agent = self._get_or_start(machine, about)
        agent.lease_count += 1
        self._cancel_idle_timer(agent)
        try:
            await agent.ready()
            yield agent
        finally:
            agent.lease_count -= 1
            if not agent.lease_count and not agent.is_stopping:
                call_later = asyncio.get_running_loop().call_later
                self._idle_timers[agent] = call_later(self._settings.chat_idle_s, agent.stop)

    async def aclose(self) -> None:
        """Stop all agents."""
        agents = [*self._agents.values(), *self._stopping]
        await asyncio.gather(*(it.aclose() for it in agents))

    def _get_or_start(self, machine: Machine, about: Provider) -> Agent:
        key = (machine.vm_id, about.id)
        agent = self._agents.pop(key, None)
        if agent is None or agent.is_stopping:
            if agent is not None:
                self._stopping.add(agent)
            self._evict_if_full(machine.vm_id)
            host = self._hosts.client(machine.host_id)
            agent = Agent(host, machine.vm_id, about, self._settings.chat_start_limit_s)
            agent.start(self._remove)
        self._agents[key] = agent
        return agent

    def _evict_if_full(self, vm_id: VmId) -> None:
        in_machine = [it for (where, _), it in self._agents.items() if where == vm_id]
        if len(in_machine) < self._settings.chat_agents_each:
            return
        idle = next((it for it in in_machine if not it.lease_count), None)
        if idle is None:
            names = " and ".join(it.provider.name for it in in_machine)
            raise NoCapacity(
                f"The machine cannot run another CLI: {names} are answering",
                hint="Wait until one has finished, or stop it",
            )
        idle.stop()
        self._stopping.add(idle)
        del self._agents[(vm_id, idle.provider.id)]

    def _remove(self, agent: Agent) -> None:
        key = (agent.vm_id, agent.provider.id)
        if self._agents.get(key) is agent:
            del self._agents[key]
        self._stopping.discard(agent)
        self._cancel_idle_timer(agent)
        self._on_ended(agent)

    def _cancel_idle_timer(self, agent: Agent) -> None:
        timer = self._idle_timers.pop(agent, None)
        if timer is not None:
            timer.cancel()
