"""The agents of this controller: one for each CLI in a machine, while its chats are used.

Turns borrow them. An agent that nobody uses for a while is ended, since it takes its machine's
memory; so is the longest unused one when another CLI needs the place.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from polydev.controller.chat.acp.agent import Agent
from polydev.controller.settings import ControllerSettings
from polydev.shared.domain import Machine, VmId
from polydev.shared.errors import NoCapacity
from polydev.shared.host_client import Hosts
from polydev.shared.providers import Provider

_Key = tuple[VmId, str]


class Agents:
    """Starts them when they are needed."""

    def __init__(
        self, hosts: Hosts, settings: ControllerSettings, on_over: Callable[[Agent], None]
    ) -> None:
        """`on_over` is told of each that has ended."""
        self._hosts = hosts
        self._settings = settings
        self._on_over = on_over
        self._agents: dict[_Key, Agent] = {}
        """The longest unused first."""
        self._ending: set[Agent] = set()
        self._timers: dict[Agent, asyncio.TimerHandle] = {}

    @asynccontextmanager
    async def lent(self, machine: Machine, about: Provider) -> AsyncIterator[Agent]:
        """The CLI's agent in a machine, which is not ended meanwhile unless by itself.

        Raises: NoCapacity; HostUnreachable, ChannelLost, ChatFailed when it does not start.
        """
        agent = self._of(machine, about)
        agent.users += 1
        timer = self._timers.pop(agent, None)
        if timer is not None:
            timer.cancel()
        try:
            await agent.ready()
            yield agent
        finally:
            agent.users -= 1
            if not agent.users and not agent.is_ending:
                later = asyncio.get_running_loop().call_later
                self._timers[agent] = later(self._settings.chat_idle_s, agent.end)

    async def aclose(self) -> None:
        """End all."""
        every = [*self._agents.values(), *self._ending]
        await asyncio.gather(*(it.aclose() for it in every))

    def _of(self, machine: Machine, about: Provider) -> Agent:
        key = (machine.vm_id, about.id)
        agent = self._agents.pop(key, None)
        if agent is None or agent.is_ending:
            if agent is not None:
                self._ending.add(agent)
            self._make_room(machine.vm_id)
            host = self._hosts.of(machine.host_id)
            agent = Agent(host, machine.vm_id, about, self._settings.chat_start_limit_s)
            agent.start(self._over)
        self._agents[key] = agent
        return agent

    def _make_room(self, vm_id: VmId) -> None:
        there = [it for (where, _), it in self._agents.items() if where == vm_id]
        if len(there) < self._settings.chat_agents_each:
            return
        idle = next((it for it in there if not it.users), None)
        if idle is None:
            names = " and ".join(it.provider.name for it in there)
            raise NoCapacity(
                f"The machine has no room for one more CLI at once: {names} answer in it",
                hint="Wait until one of them has answered, or stop it",
            )
        idle.end()
        self._ending.add(idle)
        del self._agents[(vm_id, idle.provider.id)]

    def _over(self, agent: Agent) -> None:
        key = (agent.vm_id, agent.provider.id)
        if self._agents.get(key) is agent:
            del self._agents[key]
        self._ending.discard(agent)
        timer = self._timers.pop(agent, None)
        if timer is not None:
            timer.cancel()
        self._on_over(agent)
