"""A progress bar, where one can be shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["progress_bar"]


@contextmanager
def progress_bar(total: int, what: str, wanted: bool) -> Iterator[Callable[[int], None]]:
    """A progress bar, if it is wanted and can be shown: `advance(steps)`."""
    shown = None
    if wanted:
        try:
            from rich.console import Console
            from rich.progress import Progress
        except ModuleNotFoundError:
            pass
        else:
            console = Console(stderr=True)
            shown = Progress(console=console, transient=True, disable=not console.is_terminal)
    if shown is None:
        yield lambda steps: None
        return
    with shown as progress:
        task = progress.add_task(what, total=total)
        yield lambda steps: progress.advance(task, steps)
