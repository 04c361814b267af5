"""The index of ``explain all``: every idea in words, beside its picture and its numbers. One HTML file."""

from html import escape
from typing import NamedTuple

STYLE = """
:root { --ink: #1b2430; --soft: #68727f; --faint: #d9dee5; --blue: #0b62a8; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: #fff; font: 17px/1.6 system-ui, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1248px; margin: 0 auto; padding: 56px 24px 96px; }
h1 { font-size: clamp(28px, 7vw, 40px); line-height: 1.15; margin: 0 0 12px; }
h2 { font-size: 28px; line-height: 1.2; margin: 0 0 4px; }
p { max-width: 46em; margin: 0 0 16px; overflow-wrap: anywhere; }
.soft { color: var(--soft); font-size: 15px; }
nav { margin: 28px 0 0; display: flex; flex-wrap: wrap; gap: 8px 20px; }
a { color: var(--blue); text-decoration: none; }
a:hover { text-decoration: underline; }
section { border-top: 1px solid var(--faint); margin-top: 64px; padding-top: 48px; }
img { display: block; width: 100%; height: auto; margin: 24px 0; border: 1px solid var(--faint); border-radius: 6px; }
pre { max-height: 420px; overflow: auto; margin: 0 0 16px; padding: 16px 20px; background: #f6f8fa; }
pre, code { font-family: ui-monospace, Menlo, Consolas, monospace; font-size: 12px; line-height: 1.5; }
code { display: inline-block; }
"""


class Section(NamedTuple):
    """One idea: its name, what it is about, the idea in words, the finding, the numbers, the functions it calls.

    ``made_by`` names these as "module.function".
    """

    name: str
    about: str
    idea: str
    finding: str
    table: str
    made_by: tuple[str, ...]


def html(caption: str, sections: list[Section], pages: dict[str, str] | None = None) -> str:
    """The whole page, its pictures NAME.png in the same folder. It links other ``pages``, {file: words}, first."""
    links = "".join(f'<a href="{file}"><b>{escape(words)}</b></a>' for file, words in (pages or {}).items())
    links += "".join(f'<a href="#{s.name}">{escape(s.name)}</a>' for s in sections)
    body = "".join(_section(section) for section in sections)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Backpropagation, made visible</title>\n<style>{STYLE}</style>\n<main>\n"
        "<h1>Backpropagation, made visible</h1>\n"
        "<p>What a network should change in itself, one idea after another, on real images. Every number comes from "
        "the hand-written backward pass that trains the network.</p>\n"
        f'<p class="soft">{escape(caption)}</p>\n<nav>{links}</nav>\n{body}</main>\n</html>\n'
    )


def _section(section: Section) -> str:
    """One idea: the words, the picture, the numbers, and the command."""
    name, made = escape(section.name), ", ".join(f"<code>{escape(function)}</code>" for function in section.made_by)
    return (
        f'<section id="{name}">\n<h2>{name}</h2>\n<p class="soft">{escape(section.about)}</p>\n'
        f"<p>{escape(section.idea)}</p>\n"
        f'<img src="{name}.png" alt="{escape(section.finding)}">\n<pre>{escape(section.table)}</pre>\n'
        f'<p class="soft">Made by {made}. Other options: '
        f"<code>python -m bp_torch explain {name} --help</code></p>\n</section>\n"
    )
