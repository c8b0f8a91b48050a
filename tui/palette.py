"""The command palette: whoever does not know a key finds it by its words."""

from __future__ import annotations

from functools import partial

from textual.binding import ActiveBinding
from textual.command import DiscoveryHit, Hit, Hits, Provider


class Keys(Provider):
    """Every key of the screen in front as a command of the palette."""

    async def discover(self) -> Hits:
        """All of them."""
        for words, active in self._known():
            yield DiscoveryHit(words, partial(self._run, active))

    async def search(self, query: str) -> Hits:
        """Those whose words match."""
        matcher = self.matcher(query)
        for words, active in self._known():
            if (score := matcher.match(words)) > 0:
                yield Hit(score, matcher.highlight(words), partial(self._run, active))

    def _known(self) -> list[tuple[str, ActiveBinding]]:
        # What one does here first, then how one moves.
        bindings = sorted(self.screen.active_bindings.values(), key=lambda one: one.node is self.screen.focused)
        return [(f"{one.binding.description}  ({one.binding.key})", one) for one in bindings if one.binding.description]

    async def _run(self, active: ActiveBinding) -> None:
        await self.app.run_action(active.binding.action, default_namespace=active.node)
