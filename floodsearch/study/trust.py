"""What a person lets this machine run: code of the user's own, with its arguments.

Whoever can write to the database can change what a study names, at any moment. So nothing that a stored spec
names is imported, started or looked for, unless a person has given exactly this on this machine: by a study
file, or by a token that such a file gives. What resolves code takes a `TrustedSpec`, and only this module
makes one.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from floodsearch.defaults import DATA_DIR
from floodsearch.errors import UntrustedError, UsageError
from floodsearch.study.spec import Spec

DIGITS = 32
COMMAND = "command"
"""Stands for a command in its token: the digest says which."""
TOKEN = re.compile(rf"[^\s@]+@[0-9a-f]{{{DIGITS}}}")


def token_of(spec: Spec) -> str | None:
    """Return what a person says to trust a study's code with its arguments, `module:function@digest`.

    None where there is nothing to trust: a built-in task that reads no folder but the usual one.
    """
    reference = COMMAND if spec.command is not None else spec.code or _with_places(spec)
    return None if reference is None else f"{reference}@{_digest(spec)}"


def _with_places(spec: Spec) -> str | None:
    """Return the name of a built-in task that is to read a folder of somebody's choice, or download to it."""
    return spec.task if spec.options.get("data_dir", DATA_DIR) != DATA_DIR else None


def _digest(spec: Spec) -> str:
    """Return the first half of the SHA-256 of all that decides what is run with which arguments."""
    canonical = json.dumps(_asked(spec), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:DIGITS]


def _asked(spec: Spec) -> dict[str, Any]:
    """Return all that a study's code is, and is handed."""
    whole = spec.model_dump(mode="json")
    names = ("task", "objective", "command", "options")
    return {**{name: whole[name] for name in names}, "recipe": whole["training"]["recipe"]}


@dataclass(frozen=True)
class TrustedSpec:
    """A spec whose code may be resolved and run here, as it was when that was found out."""

    spec: Spec


@dataclass(frozen=True)
class Trusts:
    """The tokens of what may be run; none by default."""

    tokens: frozenset[str] = frozenset()

    def allow(self, spec: Spec) -> TrustedSpec:
        """Return a spec, from wherever it is, as one whose code may be run.

        Raises:
            UntrustedError: if nobody has trusted that, with what it is and the token that would.
        """
        token = token_of(spec)
        if token is not None and token not in self.tokens:
            raise UntrustedError(spec.name, _shown(spec), _quoted(token))
        return TrustedSpec(spec)


NOTHING = Trusts()
"""What is trusted where nobody said anything: built-in tasks."""


def given(spec: Spec) -> TrustedSpec:
    """Return a spec that a person gave on this machine, never one from a database."""
    return trust_in(spec).allow(spec)


def trust_in(spec: Spec) -> Trusts:
    """Return the trust that a person shows who gives this spec on this machine."""
    return Trusts(frozenset(filter(None, [token_of(spec)])))


def trust_by(tokens: Iterable[str]) -> Trusts:
    """Return the trust that tokens show.

    Raises:
        UsageError: if one names code without its arguments, or is no token.
    """
    tokens = frozenset(tokens)
    for token in sorted(tokens):
        if not TOKEN.fullmatch(token):
            raise UsageError(
                f"--trust {_quoted(token)} does not say which function with which arguments; write "
                "--trust MODULE:FUNCTION@DIGEST, of a command --trust command@DIGEST, as floodsearch check "
                "STUDY.toml tells it"
            )
    return Trusts(tokens)


def _shown(spec: Spec) -> str:
    """Return what a spec wants to run, whole, in one line of plain ASCII."""
    return ", ".join(
        f"{name} {_ascii(value)}" for name, value in _asked(spec).items() if value not in (None, {})
    )


def _ascii(value: object) -> str:
    return json.dumps(value).replace("\x7f", "\\u007f")


def _quoted(token: str) -> str:
    """Return a token as a shell takes it; one that no terminal should see is escaped, and thus refused."""
    return shlex.quote(token if token.isascii() and token.isprintable() else _ascii(token))
