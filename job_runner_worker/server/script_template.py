"""What is put around scripts: Django's templates, for texts that are no HTML."""

from __future__ import annotations

import functools

from django.template import Context, Engine, Template

_ENGINE = Engine(autoescape=False)
"""Without loaders: a template has nothing but its own text."""


def render(body: str, content: str) -> str:
    """Return a script within a template's body; raises whatever a template raises."""
    return str(compiled(body).render(Context({"content": content})))


def script_of(body: str, content: str, template_id: int) -> str:
    """Return what a worker runs.

    A template that cannot be rendered gives a script that says so and fails.
    """
    try:
        return render(body, content)
    except Exception as error:  # a template may raise anything
        return failing_script(f"job template {template_id}: {error}")


def failing_script(message: str) -> str:
    """Return a script that says why it fails."""
    return f"#!/bin/sh\ncat <<'END_OF_MESSAGE'\n{message}\nEND_OF_MESSAGE\nexit 1\n"


@functools.lru_cache(maxsize=64)
def compiled(body: str) -> Template:
    """Return a template; raises TemplateSyntaxError."""
    return Template(body, engine=_ENGINE)
