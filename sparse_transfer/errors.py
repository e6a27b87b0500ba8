"""Errors that speak to the user: what was asked, what was found, what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake that the user can mend; printed without a traceback.

    Args:
        what: what was asked for and could not be done, one sentence.
        why: what was found instead.
        hint: the next thing to try.
    """

    def __init__(self, what: str, why: str = "", hint: str = "") -> None:
        self.what, self.why, self.hint = what, why, hint
        super().__init__("\n".join(part for part in (what, why, hint) if part))


class TrainingDiverged(UserError):  # noqa: N818 - what happened, in two words
    """The loss stopped being a finite number."""


class StopRequested(Exception):  # noqa: N818 - a request, not an error
    """SIGTERM or SIGUSR1 arrived; the run can be resumed from its last epoch (exit code 75)."""


def nearest(name: str, options: Iterable[str]) -> list[str]:
    """The options most like `name`, best first, at most three."""
    by_lower = {option.lower(): option for option in options}
    close = difflib.get_close_matches(name.lower(), list(by_lower), n=3, cutoff=0.5)
    return [by_lower[match] for match in close]


def unknown_name(kind: str, name: str, options: Iterable[str]) -> UserError:
    """The error for a name that does not exist, with its nearest matches."""
    known = sorted(set(options))  # a method and a layout may share a name
    close = nearest(name, known)
    if close:
        hint = f"Did you mean {' or '.join(close)}?"
    else:
        shown = ", ".join(known[:20]) + (" …" if len(known) > 20 else "")
        hint = f"Known: {shown}." if known else f"There is no {kind} at all."
    return UserError(f"There is no {kind} named '{name}'.", hint=hint)
