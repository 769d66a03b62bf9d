"""An SVG document of matplotlib as an element of an HTML page.

It loses everything that a page has already: the XML head, namespaces, fonts, ids that nothing refers to. Colours
become the variables of the style sheet, so that they follow the reader's choice of light or dark.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from xml.etree import ElementTree

from markupsafe import Markup

from gguf_export.reports.canvas import PALETTE
from quantize.containers.untrusted import printable

__all__ = ["inline_svg"]

HREF = "{http://www.w3.org/1999/xlink}href"

VARIABLES = {colour: f"var(--{name})" for name, colour in PALETTE.items()}

FONT_SIZE_IN = re.compile(r"\d[\d.]*px")

UPRIGHT = "rotate(-0 "  # how matplotlib says that a text is not turned


def inline_svg(document: str, label: str, hover_texts: Mapping[str, Sequence[str]]) -> Markup:
    """Make an element of a document.

    Args:
        document: SVG that matplotlib wrote.
        label: what it shows, for who cannot see it.
        hover_texts: id of a group of markers -> a text for each marker in it, which the pointer is told.
    """
    root = ElementTree.fromstring(document)
    for child in list(root):
        if not child.tag.endswith("}g"):
            root.remove(child)  # metadata, and a style that would be that of the whole page
    for group in root.iter():
        texts = hover_texts.get(group.get("id", ""), ())
        if texts:
            markers = [element for element in group.iter() if element.tag.endswith("}use")]
            for marker, text in zip(markers, texts, strict=True):
                ElementTree.SubElement(marker, "title").text = printable(text)
    referred = {element.get(HREF, "").removeprefix("#") for element in root.iter()}
    for element in root.iter():
        element.tag = element.tag.partition("}")[2] or element.tag
        element.attrib = _attributes(element.attrib, referred)
        if element.tag not in ("text", "title"):
            element.text = None
        element.tail = "\n" if element.tag == "g" else None
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": printable(label)}
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _attributes(attributes: Mapping[str, str], referred: set[str]) -> dict[str, str]:
    kept = {}
    for name, value in attributes.items():
        if name == HREF:
            kept["href"] = value
        elif name == "style":
            kept["style"] = _style(value)
        elif name == "d":
            kept["d"] = " ".join(value.split())
        elif (name != "id" or value in referred) and not value.startswith(UPRIGHT):
            kept[name] = value
    return kept


def _style(style: str) -> str:
    """A style without families of fonts, and with the variables of the style sheet as its colours."""
    kept = []
    for declaration in filter(None, map(str.strip, style.split(";"))):
        name, _, value = (word.strip() for word in declaration.partition(":"))
        if name == "font":  # the short form, in which matplotlib before 3.11 writes weight, size and family
            kept += [f"font-size: {size}" for size in FONT_SIZE_IN.findall(value)[:1]]
        elif name != "font-family":
            kept.append(f"{name}: {VARIABLES.get(value, value)}")
    return "; ".join(kept)
