"""CSS of mail without what reaches out of it: known properties, functions and rules stay. Pure.

What is left out is left out whole: a declaration with an escape or an unknown function is not
repaired; only a picture from elsewhere is taken out of its background. Linear, never raises.
"""

import re
from typing import NamedTuple

#: How letters, boxes, tables and lists look. Nothing that places a box over others or moves it.
_PROPERTIES = frozenset(
    "background background-color background-image background-position background-repeat"
    " background-size border border-bottom border-bottom-color border-bottom-style"
    " border-bottom-width border-collapse border-color border-left border-left-color"
    " border-left-style border-left-width border-radius border-right border-right-color"
    " border-right-style border-right-width border-spacing border-style border-top"
    " border-top-color border-top-style border-top-width border-width box-sizing caption-side clear"
    " color direction display empty-cells float font font-family font-size font-style font-variant"
    " font-weight height letter-spacing line-height list-style list-style-position list-style-type"
    " margin margin-bottom margin-left margin-right margin-top max-height max-width min-height"
    " min-width opacity overflow overflow-wrap padding padding-bottom padding-left padding-right"
    " padding-top table-layout text-align text-decoration text-decoration-color"
    " text-decoration-line text-indent text-overflow text-transform unicode-bidi vertical-align"
    " visibility white-space width word-break word-spacing word-wrap border-top-left-radius"
    " border-top-right-radius border-bottom-left-radius border-bottom-right-radius box-shadow"
    " text-shadow flex flex-direction flex-wrap align-items justify-content gap order"
    " object-fit aspect-ratio".split()
)
_FUNCTIONS = frozenset(
    "rgb rgba hsl hsla calc min max clamp linear-gradient radial-gradient".split()
)
_WITH_PICTURES = frozenset({"background", "background-image"})
_COMMENT = re.compile(r"/\*.*?(?:\*/|\Z)", re.DOTALL)
_FUNCTION = re.compile(r"(?<![\w-])([\w-]*)\s*\(")
_STRINGS = r"\"[\w\s.,-]*\"|'[\w\s.,-]*'"
#: No escape, no markup, no "@" or brace, and strings that end.
_VALUE = re.compile(rf"(?:[\w\s#%.,()+*/!-]|{_STRINGS})*")
_SELECTOR = re.compile(rf"(?:[\w\s#.,:>+~*=\[\]^$|-]|{_STRINGS})+")
_MEDIA = re.compile(r"@media[\w\s(),:.>=-]+", re.IGNORECASE)
_FETCHED = re.compile(r"url\(\s*[\"']?\s*(?:https?:)?//", re.IGNORECASE)
_PICTURE = re.compile(
    r"url\(\s*([\"']?)\s*(?:https?:)?//[\w./?&=%:~+,@!$*-]+\s*\1\s*\)", re.IGNORECASE
)
_BRACE = re.compile(r"[{}]")


class Style(NamedTuple):
    """CSS, and how many things of it would have been fetched and were left out."""

    css: str
    remote: int


def of_attribute(css: str, *, remote: bool) -> Style:
    """Return the declarations of a style attribute that may stay."""
    kept = []
    left_out = 0
    css = " ".join(_COMMENT.sub("", css).split())  # a run of blanks is looked at from each of them
    for declaration in css.split(";"):
        name, _, value = declaration.partition(":")
        name, value = name.strip().lower(), value.strip()
        without = value
        if name in _WITH_PICTURES:
            without = " ".join(_PICTURE.sub(" ", value).split())
        if not remote:
            left_out += len(_FETCHED.findall(value))
            value = without  # its colour stays: the text over it may be white
        if name in _PROPERTIES and value and _is_safe(without):
            kept.append(f"{name}:{value}")
    return Style(";".join(kept), left_out)


def _is_safe(value: str) -> bool:
    return (
        _VALUE.fullmatch(value) is not None
        and value.count("(") == value.count(")")
        and all(not name or name.lower() in _FUNCTIONS for name in _FUNCTION.findall(value))
    )


def of_element(css: str, *, remote: bool) -> Style:
    """Return the rules of a style element that may stay, also within @media."""
    css = _COMMENT.sub("", css).replace("<!--", "").replace("-->", "")
    kept: list[str] = []
    left_out = depth = at = 0
    prelude: str | None = None
    unknown = 0  # how deep in a rule that is left out
    for brace in _BRACE.finditer(css):
        text, at = css[at : brace.start()].strip(), brace.end()
        if unknown or (prelude is not None and brace[0] == "{"):
            unknown += 1 if brace[0] == "{" else -1
        elif brace[0] == "{":
            text = text.rpartition(";")[2].strip()  # behind @import or @charset
            if _MEDIA.fullmatch(text) and not depth:
                kept.append(f"{text}{{")
                depth = 1
            elif _SELECTOR.fullmatch(text):
                prelude = text
            else:
                unknown = 1
        elif prelude is not None:
            style = of_attribute(text, remote=remote)
            left_out += style.remote
            kept.append(f"{prelude}{{{style.css}}}\n")
            prelude = None
        elif depth:
            kept.append("}\n")
            depth = 0
    return Style("".join(kept) + "}" * depth, left_out)
