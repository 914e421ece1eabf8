"""Trust: the code, with its arguments, that a person lets this machine run.

Whoever can write to the database can change what a study names, at any moment. So nothing that a stored spec
names is imported, started or looked for, unless a person has given exactly this on this machine: by a study
file, or by a token that such a file gives. Functions that resolve code take a `TrustedSpec`, and only this
module makes one.
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
from floodsearch.errors import TaskError, UntrustedError, UsageError
from floodsearch.study.spec import Spec
from floodsearch.usercode.reference import elsewhere, is_handed

DIGITS = 32
COMMAND = "command"
"""The reference of every command in its token; the digest says which command it is."""
TOKEN = re.compile(rf"[^\s@]+@[0-9a-f]{{{DIGITS}}}")


def token_of(spec: Spec) -> str | None:
    """Return the token `module:function@digest` with which a person trusts a study's code and arguments.

    None where there is nothing to trust: a built-in task that reads no folder but the usual one.
    """
    reference = COMMAND if spec.command is not None else spec.code or _with_places(spec)
    return None if reference is None else f"{reference}@{_digest(spec)}"


def _with_places(spec: Spec) -> str | None:
    """Return the name of a built-in task whose `data_dir` is not the default one; else None."""
    return spec.task if spec.options.get("data_dir", DATA_DIR) != DATA_DIR else None


def _digest(spec: Spec) -> str:
    """Return the first half of the SHA-256 of a study's code and arguments, in hex digits."""
    canonical = json.dumps(_asked(spec), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:DIGITS]


def _asked(spec: Spec) -> dict[str, Any]:
    """Return the names of a study's code and all its arguments, as JSON has them."""
    whole = spec.model_dump(mode="json")
    names = ("task", "objective", "command", "arguments", "options")
    return {**{name: whole[name] for name in names}, "recipe": whole["training"]["recipe"]}


@dataclass(frozen=True)
class TrustedSpec:
    """A spec whose code may be resolved and run here; a spec changed later is another one."""

    spec: Spec


@dataclass(frozen=True)
class Trusts:
    """The tokens of the code that may be run; none by default."""

    tokens: frozenset[str] = frozenset()

    def allow(self, spec: Spec) -> TrustedSpec:
        """Return a spec, wherever it comes from, as one whose code may be run.

        Raises:
            UntrustedError: if no token covers it; the error shows the code and the token that would.
            TaskError: if it is a function that was handed over in Python, to another process.
        """
        token = token_of(spec)
        if token is not None and token not in self.tokens:
            if is_handed(spec.objective):
                raise TaskError(f"study {spec.name!r} cannot be trained here: {elsewhere(spec.objective)}")
            raise UntrustedError(spec.name, _shown(spec), _quoted(token))
        return TrustedSpec(spec)


NOTHING = Trusts()
"""Trust in built-in tasks alone, which need no token."""


def given(spec: Spec) -> TrustedSpec:
    """Return as trusted a spec that a person gave on this machine; never call it with one from a database."""
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
    """Return a spec's code and all its arguments in one line of plain ASCII."""
    return ", ".join(
        f"{name} {_ascii(value)}" for name, value in _asked(spec).items() if value not in (None, [], {})
    )


def _ascii(value: object) -> str:
    return json.dumps(value).replace("\x7f", "\\u007f")


def _quoted(token: str) -> str:
    """Return a token quoted for a shell; one with control characters is escaped, which makes it invalid."""
    return shlex.quote(token if token.isascii() and token.isprintable() else _ascii(token))
