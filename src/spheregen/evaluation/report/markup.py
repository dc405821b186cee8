"""HTML as a tree of elements. Text enters as text and is escaped when the tree is written: no name becomes markup."""

from __future__ import annotations

import re
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

# controls, surrogates (of file names that are no text), and the marks that turn the direction of what follows
_UNFIT = re.compile("[^\t\n\x20-\x7e\xa0-\u2029\u202f-\u2065\u206a-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def clean(text: str) -> str:
    """`text` with a replacement character for whatever has no place in a page."""
    return _UNFIT.sub("\ufffd", text.replace("\r\n", "\n"))


def element(tag: str, *children: Element | str | None, **attributes: str | int | None) -> Element:
    """An element with its children in order; None children and None attributes are left out.

    The name of an attribute loses an underscore at its end (`class_`), and others become hyphens (`aria_label`).
    """
    made = Element(
        tag,
        {
            name.rstrip("_").replace("_", "-"): clean(str(value))
            for name, value in attributes.items()
            if value is not None
        },
    )
    append(made, *children)
    return made


def append(parent: Element, *children: Element | str | None) -> None:
    """Put more children behind those that are there."""
    for child in children:
        if isinstance(child, Element):
            parent.append(child)
        elif child is not None:
            text = clean(child)
            if len(parent):
                parent[-1].tail = (parent[-1].tail or "") + text
            else:
                parent.text = (parent.text or "") + text


def document(root: Element) -> str:
    """A page, from its `html` element."""
    return "<!DOCTYPE html>\n" + ElementTree.tostring(root, encoding="unicode", method="html") + "\n"
