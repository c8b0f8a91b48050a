"""Textual's pilot waits after every key until nothing happens. How it knows that is mended here: it takes a process
that got no processor for a while for one that has nothing to do, which on a busy machine is any.

To be imported by tests that press keys."""

from __future__ import annotations

from typing import Any

from textual import app as app_module
from textual import pilot as pilot_module
from textual._context import active_app
from textual.app import ScreenStackError

from tests.parts.waiting import all_wait

_MOST_PICTURES = 100
"""A widget that asks to be drawn whenever it was drawn is waited for no longer."""


async def wait_for_idle(min_sleep: float = 0, max_sleep: float = 0) -> None:
    """Returns when every task waits for something and the screen has nothing to draw or to lay out.

    The times are those of Textual's own function; none is slept."""
    del min_sleep, max_sleep
    app = active_app.get()
    for _ in range(_MOST_PICTURES):
        await all_wait()
        try:
            screen = app.screen
        except ScreenStackError:
            return
        # What its timers do up to 1/60 s later.
        if app._resize_event is not None:
            app._check_resize()
        elif _draws(screen, app):
            screen._on_timer_update()
        else:
            return


def _draws(screen: Any, app: Any) -> bool:
    """Whether the screen waits for its timer."""
    asked = (
        screen._layout_required
        or screen._scroll_required
        or screen._repaint_required
        or screen._recompose_required
        or screen._dirty_widgets
        or screen._callbacks
    )
    return bool(asked) and screen.is_current and not app._batch_count


app_module.wait_for_idle = pilot_module.wait_for_idle = wait_for_idle  # type: ignore[attr-defined]
