"""The XMP packet: that a model made the picture and, in JPEG and WebP, its facts.

Facts are JSON in ASCII, so that nothing in them can be no character of XML. A packet is read by looking for
two names: no XML of a stranger is parsed, and no entity of it expanded.
"""

from __future__ import annotations

import re
from html import unescape
from xml.sax.saxutils import quoteattr

# IPTC digital source types: pictures made by a model must say so in machine-readable form.
SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
MADE, EDITED = "trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia"
_PACKET = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    'xmlns:xmpNote="http://ns.adobe.com/xmp/note/" xmlns:fewstep="urn:fewstep:" '
    'Iptc4xmpExt:DigitalSourceType="{source}"{attributes}/>'
    "</rdf:RDF></x:xmpmeta>"
)
_FACTS = re.compile(  # as an attribute or, where another program wrote it anew, an element
    r"""\bfewstep:facts\s*=\s*(?:"([^"]*)"|'([^']*)')|<fewstep:facts>([^<]*)</fewstep:facts>"""
)
_SOURCE = re.compile(re.escape(SOURCE_TYPES) + r"(\w{1,80})")


def make_packet(*, edited: bool, facts: str = "", extension: str = "") -> str:
    """Return the packet; `extension` is the name of one that follows it in a JPEG."""
    attributes = "".join(
        f" {name}={quoteattr(value)}"
        for name, value in (("fewstep:facts", facts), ("xmpNote:HasExtendedXMP", extension))
        if value
    )
    return _PACKET.format(source=SOURCE_TYPES + (EDITED if edited else MADE), attributes=attributes)


def facts_in(packet: str) -> str:
    """Return the JSON that a packet holds; "" where it has none."""
    match = _FACTS.search(packet)
    return unescape(next(part for part in match.groups() if part is not None)) if match else ""


def source_type(packet: str) -> str:
    """Return the digital source type that a packet names; "" where it names none."""
    match = _SOURCE.search(packet)
    return match[1] if match else ""
