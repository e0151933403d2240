"""Attributes of other packages' classes, replaced and put back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from types import TracebackType
from typing import Any

_MISSING = object()


class Patch:
    """A set of replacements, made by :meth:`apply` and taken back by :meth:`undo`; both once, however often called.

    Args:
        attributes: {(class or module, name): function}; a class that inherits the name gets it and loses it again.
        entries: {(mapping, key): function} of registries.
        changed: called after each change.
    """

    def __init__(
        self,
        attributes: Mapping[tuple[Any, str], Any],
        entries: Mapping[Any, Any] | None = None,
        registry: MutableMapping[Any, Any] | None = None,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._attributes = attributes
        self._entries = entries or {}
        self._registry: MutableMapping[Any, Any] = {} if registry is None else registry
        self._changed = changed
        self._saved: dict[tuple[Any, Any], Any] = {}

    @property
    def active(self) -> bool:
        return bool(self._saved)

    def apply(self) -> bool:
        """Whether it was not in place before."""
        if self._saved:
            return False
        for (owner, name), new in self._attributes.items():
            self._saved[owner, name] = vars(owner).get(name, _MISSING)
            setattr(owner, name, new)
        for key, new in self._entries.items():
            self._saved[None, key] = self._registry[key]
            self._registry[key] = new
        self._changed()
        return True

    def undo(self) -> None:
        """What another package has replaced in the meantime stays."""
        for (owner, name), new in self._attributes.items():
            old = self._saved.pop((owner, name), None)
            if vars(owner).get(name) is not new:
                continue
            if old is _MISSING:
                delattr(owner, name)
            else:
                setattr(owner, name, old)
        for key, new in self._entries.items():
            old = self._saved.pop((None, key), None)
            if self._registry.get(key) is new:
                self._registry[key] = old
        self._changed()


class Patched:
    """A patch in place: ``undo()`` takes it back. As a context manager it is in place for the block, and stays where it
    was in place before."""

    def __init__(self, patch: Patch) -> None:
        self._patch = patch
        self._first = patch.apply()

    def undo(self) -> None:
        """Restores the very functions that were there before the patch."""
        if self._patch.active:
            self._patch.undo()

    def __enter__(self) -> Patched:
        self._first = self._patch.apply() or self._first
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._first:
            self.undo()
