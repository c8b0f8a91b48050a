"""The prefix cache: per adapter load, a radix tree of token runs with their keys and values.

A turn's prompt is the previous turn's prompt, output and a short observation, so that all but the observation is found
here; the episodes of a group find the prompt. A reload of an adapter has a new load id, hence never stale values.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from engine.embedded.pages import copy_of


class Node:
    """A run of tokens below its parent; kv is `[layers, 2, kv_heads, len(tokens), head_dim]`."""

    __slots__ = ("children", "kv", "last_use", "parent", "tokens")

    def __init__(self, tokens: list[int], kv: Tensor | None, parent: Node | None) -> None:
        self.tokens = tokens
        self.kv = kv
        self.parent = parent
        self.children: dict[int, Node] = {}
        self.last_use = 0


class PrefixTree:
    """Longest-prefix look-up and least-recently-used eviction; `tokens` is what the cache holds now."""

    def __init__(self) -> None:
        self._roots: dict[int, Node] = {}
        self._clock = 0
        self.tokens = 0

    def match(self, load_id: int, tokens: list[int], limit: int) -> tuple[int, list[Tensor]]:
        """The longest cached prefix of `tokens[:limit]`: its length, and its keys and values in order (views)."""
        self._clock += 1
        found, parts = 0, []
        node = self._roots.get(load_id)
        while node is not None and found < limit:
            child = node.children.get(tokens[found])
            if child is None or child.kv is None:
                break
            common = _common(child.tokens, tokens, found, limit)
            child.last_use = self._clock
            parts.append(child.kv[:, :, :, :common])
            found += common
            node = child if common == len(child.tokens) else None
        return found, parts

    def insert(self, load_id: int, tokens: list[int], read: Callable[[int, int], Tensor]) -> None:
        """Remember `tokens`; `read(start, stop)` copies the keys and values of what is not held yet."""
        self._clock += 1
        node = self._roots.setdefault(load_id, Node([], None, None))
        found = 0
        while found < len(tokens):
            child = node.children.get(tokens[found])
            if child is None:
                leaf = Node(tokens[found:], read(found, len(tokens)), node)
                leaf.last_use = self._clock
                node.children[tokens[found]] = leaf
                self.tokens += len(leaf.tokens)
                return
            common = _common(child.tokens, tokens, found, len(tokens))
            if common < len(child.tokens):
                _split(child, common)
            child.last_use = self._clock
            found += common
            node = child

    def evict(self, tokens: int) -> int:
        """Drop least recently used leaves until `tokens` tokens are freed or nothing is left; returns the number."""
        freed = 0
        while freed < tokens:
            leaves = sorted((leaf for root in self._roots.values() for leaf in _leaves(root)), key=lambda n: n.last_use)
            if not leaves:
                break
            for leaf in leaves:
                if freed >= tokens:
                    break
                assert leaf.parent is not None
                del leaf.parent.children[leaf.tokens[0]]
                freed += len(leaf.tokens)
        self.tokens -= freed
        return freed

    def drop(self, load_id: int) -> None:
        """Forget everything that one adapter load computed."""
        root = self._roots.pop(load_id, None)
        if root is not None:
            self.tokens -= sum(len(node.tokens) for node in _nodes(root))

    def clear(self) -> None:
        """Forget everything."""
        self._roots.clear()
        self.tokens = 0


def _common(run: list[int], tokens: list[int], start: int, limit: int) -> int:
    """How many leading tokens of `run` equal `tokens[start:limit]`."""
    room = min(len(run), limit - start)
    if run[:room] == tokens[start : start + room]:
        return room
    return next(i for i in range(room) if run[i] != tokens[start + i])


def _split(node: Node, at: int) -> None:
    """Cut a node in two: it keeps the head, a new child gets the tail, its children and its age."""
    assert node.kv is not None
    tail = Node(node.tokens[at:], copy_of(node.kv[:, :, :, at:]), node)
    tail.children, tail.last_use = node.children, node.last_use
    for child in tail.children.values():
        child.parent = tail
    node.kv = copy_of(node.kv[:, :, :, :at])
    node.tokens, node.children = node.tokens[:at], {tail.tokens[0]: tail}


def _nodes(root: Node) -> list[Node]:
    found, stack = [], [root]
    while stack:
        node = stack.pop()
        found.append(node)
        stack.extend(node.children.values())
    return found


def _leaves(root: Node) -> list[Node]:
    return [node for node in _nodes(root) if not node.children and node.parent is not None]
