"""Two rules of the site: no cross-reference roles of docstrings in the text, nothing loaded from another server."""

import re

from mkdocs.exceptions import PluginError

_ROLE = re.compile(r":(?:func|class|meth|mod|data|attr|exc):(?=<code)")
_LOADED = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*\ssrc=\"?(?:https?:)?//|<link\b[^>]*\bhref=\"?(?:https?:)?//[^>]*stylesheet"
)


def on_page_content(html: str, **_: object) -> str:
    """Drop the roles, as in ``:func:`name```, which Markdown leaves in the text."""
    return _ROLE.sub("", html)


def on_post_page(output: str, **_: object) -> str:
    """Refuse a page that a browser without a network could not show.

    Raises:
        PluginError: A script, image or style sheet of another server.
    """
    if found := _LOADED.search(output):
        raise PluginError(f"the site must load nothing from another server, but got {found[0]}")
    return output
