"""The frame of an HTML page about runs: loads nothing, runs no script, reads on a phone and on paper."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape


def page(title: str, about: Sequence[str], sections: Sequence[tuple[str, str]]) -> str:
    """A whole page. ``about`` are lines of text below the title, sections (title, HTML)."""
    body = "".join(f"<section><h2>{escape(head)}</h2>{html}</section>" for head, html in sections)
    lines = "".join(f"<p>{escape(line)}</p>" for line in about)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head>"
        f"<body><header><h1>{escape(title)}</h1>{lines}</header>{body}</body></html>\n"
    )


def details(html: str, summary: str = "the figures") -> str:
    """What is folded on a screen; paper shows it."""
    return f"<details><summary>{escape(summary)}</summary>{html}</details>"


LIGHT = """--bg:#fff;--ink:#1c2430;--soft:#5b6675;--grid:#e3e7ec;--c1:#1f6feb;--c2:#1a7f5a;--c3:#b4690e;
--r0:#c0392b;--r1:#8e44ad;--r2:#95a5a6;--r3:#d4a017;--card:#f4f6f9;--warn:#fdf0e3"""
CSS = f"""
:root{{{LIGHT}}}
@media screen and (prefers-color-scheme:dark){{:root{{--bg:#12161c;--ink:#e6ebf2;--soft:#9aa6b5;
--grid:#2b333e;--c1:#6ea8fe;--c2:#4cc38a;--c3:#f0a54a;--r0:#ff7b6b;--r1:#c58af9;--r2:#8b98a8;--r3:#e8c04f;
--card:#1b212a;--warn:#33261a}}}}
body{{background:var(--bg);color:var(--ink);font:16px/1.5 system-ui,sans-serif;max-width:60rem;
margin:0 auto;padding:1rem}}p,li,td,h1{{overflow-wrap:anywhere}}
h1{{margin:.2em 0}}h2{{margin:1.6em 0 .4em;font-size:1.2rem}}header p{{margin:.2em 0}}
header p,details,summary,figcaption{{color:var(--soft)}}figure{{margin:.6rem 0}}
.cards{{display:grid;grid-template-columns:repeat(auto-fit,minmax(11rem,1fr));gap:.6rem}}
.card{{background:var(--card);border-radius:.5rem;padding:.7rem}}.card b{{display:block;font-size:1.4rem}}
.card span{{color:var(--soft);font-size:.85rem}}.warn{{background:var(--warn);border-radius:.5rem;
padding:.8rem .8rem .8rem 2rem}}.wide{{overflow-x:auto}}
svg{{width:100%;height:auto;display:block}}svg text{{fill:var(--soft);font-size:12px}}
.grid{{stroke:var(--grid)}}.frame{{fill:var(--card);stroke:var(--grid)}}.line{{fill:none;stroke-width:2.5}}
.band{{fill:var(--c3);opacity:.15}}.line.c1{{stroke:var(--c1)}}.line.c2{{stroke:var(--c2)}}
.line.c3{{stroke:var(--c3)}}.line.r0{{stroke:var(--r0)}}.line.r1{{stroke:var(--r1)}}.line.r2{{stroke:var(--r2)}}
.line.r3{{stroke:var(--r3)}}.dot.c1,.bar.c1{{fill:var(--c1)}}.dot.c2,.bar.c2{{fill:var(--c2)}}
.dot.c3,.bar.c3{{fill:var(--c3)}}.bar.r0,.dot.r0{{fill:var(--r0)}}.bar.r1,.dot.r1{{fill:var(--r1)}}
.bar.r2,.dot.r2{{fill:var(--r2)}}.bar.r3,.dot.r3{{fill:var(--r3)}}svg text.c1{{fill:var(--c1)}}
svg text.c2{{fill:var(--c2)}}svg text.c3{{fill:var(--c3)}}svg text.r0{{fill:var(--r0)}}
svg text.r1{{fill:var(--r1)}}svg text.r3{{fill:var(--r3)}}
table{{border-collapse:collapse;font-size:.85rem;width:100%}}
td,th{{border-bottom:1px solid var(--grid);padding:.3rem .5rem;text-align:left;vertical-align:top;
min-width:3.5rem}}td:first-child{{min-width:7rem}}
@media screen and (max-width:40rem){{svg text{{font-size:18px}}svg.hashes{{min-width:36rem}}
svg.hashes text{{font-size:12px}}td,th{{padding:.3rem .25rem}}}}
@media print{{:root{{{LIGHT}}}body{{max-width:none;padding:0;font-size:11pt}}
*{{print-color-adjust:exact;-webkit-print-color-adjust:exact}}.wide{{overflow:visible}}
summary{{display:none}}details::details-content{{content-visibility:visible;block-size:auto}}
h2{{break-after:avoid}}figure,tr,.card,.warn{{break-inside:avoid}}thead{{display:table-header-group}}}}
"""
