"""Colours and markers fixed by method name, readable with any colour vision, light or dark.

The palette is that of Okabe and Ito (2008, "Color Universal Design"); their yellow comes last and
is darkened on white, where it could not be read. Drawings are made with the light values below. A
page replaces each by its CSS variable, a file gets rules for the dark scheme, so that one drawing
serves both.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

# light value → (CSS variable, dark value)
INK, MUTED, GRID, PAPER = "#1c1c1d", "#6b6b6c", "#dcdcdd", "#fefefd"
SCHEMES = {
    INK: ("--ink", "#ecebe8"),
    MUTED: ("--muted", "#a3a29f"),
    GRID: ("--grid", "#3a3a3b"),
    PAPER: ("--paper", "#171718"),
    "#0072b2": ("--blue", "#3d9be0"),
    "#d55e00": ("--vermilion", "#f0803c"),
    "#009e73": ("--green", "#1fbf93"),
    "#cc79a7": ("--purple", "#dc93bb"),
    "#e69f00": ("--orange", "#f2b233"),
    "#56b4e9": ("--sky", "#86ccf4"),
    "#b9a600": ("--yellow", "#f0e442"),
    "#7f7f80": ("--grey", "#8f8f90"),
}
BETTER, WORSE = "#0072b2", "#d55e00"
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#b9a600")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
Looks = dict[str, tuple[str, str]]  # method → (colour, marker)
FIXED = {"dense": INK, "random": "#7f7f80"}
KNOWN = ("gmp", "fggp", "acdc", "magnitude", "str", "rigl", "woodfisher")


def assign(methods: Iterable[str]) -> Looks:
    """The (colour, marker) of each method: by name alone as long as no two names collide.

    Spelling does not matter: `AC/DC` of a published table has the colour of `acdc`. Known methods
    have a place of their own; any other name is placed by its hash, at the next free place where
    that one is taken. More methods than colours share colours, not markers.
    """
    names = sorted(set(methods))
    known = [name for name in names if _plain(name) in KNOWN]
    others = [name for name in names if _plain(name) not in KNOWN and name not in FIXED]
    taken: list[int] = []
    looks: Looks = {name: (FIXED[name], "o") for name in names if name in FIXED}
    for name in [*known, *others]:
        if _plain(name) in KNOWN:
            place = KNOWN.index(_plain(name))
        else:
            start = hashlib.sha256(_plain(name).encode()).digest()[0]
            order = [(start + step) % len(PALETTE) for step in range(len(PALETTE))]
            place = min(order, key=taken.count)
        marker = MARKERS[(place + taken.count(place)) % len(MARKERS)]
        looks[name] = (PALETTE[place], marker)
        taken.append(place)
    return looks


def _plain(name: str) -> str:
    """The letters and digits of a name, lower case."""
    return "".join(letter for letter in name.lower() if letter.isalnum())


def variable(colour: str) -> str:
    """The CSS expression of a colour of this module, e.g. `var(--blue)`."""
    return f"var({SCHEMES[colour][0]})"


def css_variables(dark: bool) -> str:
    """The declarations of every CSS variable for one scheme."""
    pairs = [(name, other if dark else light) for light, (name, other) in SCHEMES.items()]
    return "".join(f"{name}:{value};" for name, value in pairs)


def dark_rules() -> str:
    """CSS for a stand-alone SVG: the dark scheme overrides the literal colours in it."""
    rules = "".join(
        f'[style*="{kind}: {light}"]{{{kind}:{dark}!important}}'
        for light, (_, dark) in SCHEMES.items()
        for kind in ("fill", "stroke")
    )
    return f"@media (prefers-color-scheme:dark){{{rules}}}"
