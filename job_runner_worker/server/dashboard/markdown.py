"""Descriptions in Markdown, as HTML that cannot do harm."""

from __future__ import annotations

from typing import Any

from django.utils.safestring import SafeString, mark_safe
from markdown_it import MarkdownIt
from markdown_it.token import Token

_SAFE_SCHEMES = ("http://", "https://", "mailto:", "/", "#")


def _make() -> MarkdownIt:
    found = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
    found.validateLink = _is_safe  # type: ignore[method-assign]
    found.add_render_rule("link_open", _link)
    # What is not of this server is not loaded.
    found.disable("image")
    return found


def render(text: str) -> SafeString:
    """Return the HTML of a description; HTML in it is text."""
    return mark_safe(_MARKDOWN.render(text))  # made of escaped text alone


def _is_safe(url: str) -> bool:
    return url.strip().lower().startswith(_SAFE_SCHEMES)


def _link(self: Any, tokens: list[Token], index: int, options: Any, env: Any) -> str:
    tokens[index].attrSet("rel", "noopener noreferrer nofollow")
    return str(self.renderToken(tokens, index, options, env))


_MARKDOWN = _make()
