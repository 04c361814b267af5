"""The index of ``explain all``: every idea in words, beside its picture and its numbers. One HTML file."""

from html import escape
from typing import NamedTuple

STYLE = """
:root { --ink: #1b2430; --soft: #68727f; --faint: #d9dee5; --blue: #0b62a8; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: #fff; font: 17px/1.6 system-ui, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1248px; margin: 0 auto; padding: 56px 24px 96px; }
h1 { font-size: clamp(28px, 7vw, 40px); line-height: 1.15; margin: 0 0 12px; }
h1, h2 { text-wrap: balance; }
h2 { font-size: clamp(22px, 5vw, 28px); line-height: 1.25; margin: 0 0 12px; max-width: 32em; }
p { max-width: 46em; margin: 0 0 16px; overflow-wrap: anywhere; }
.soft { color: var(--soft); font-size: 15px; }
a { color: var(--blue); text-decoration: none; }
a:hover { text-decoration: underline; }
nav ol { margin: 20px 0 0; padding-left: 1.6em; columns: 2; column-gap: 48px; }
nav li { break-inside: avoid; margin-bottom: 6px; }
section { border-top: 1px solid var(--faint); margin-top: 56px; padding-top: 40px; }
.turn { display: flex; justify-content: space-between; gap: 24px; margin: 24px 0 0; max-width: none; }
.turn a:last-child { text-align: right; margin-left: auto; }
.picture { display: block; margin: 24px 0; border: 1px solid var(--faint); border-radius: 6px; overflow-x: auto; }
img { display: block; width: 100%; height: auto; }
summary { cursor: pointer; color: var(--blue); padding: 8px 0; }
pre { max-height: 480px; overflow: auto; margin: 0 0 16px; padding: 16px 20px; background: #f6f8fa; }
pre, code { font-family: ui-monospace, Menlo, Consolas, monospace; font-size: 12px; line-height: 1.5; }
code { overflow-wrap: anywhere; }
code span { white-space: nowrap; }
@media (max-width: 640px) {
  main { padding: 32px 16px 64px; }
  nav ol { columns: 1; }
  .only-wide img { width: 1060px; max-width: none; }
}
"""


class Section(NamedTuple):
    """One idea: its name, its heading, the idea in words, the functions it calls as "module.function", its result."""

    name: str
    heading: str
    idea: str
    made_by: tuple[str, ...]
    result: "Result | None" = None


class Result(NamedTuple):
    """What came out: the finding, the numbers, and whether there is a picture for a telephone, NAME.narrow.png."""

    finding: str
    table: str
    narrow: bool


def html(caption: str, sections: list[Section], pages: dict[str, str] | None = None) -> str:
    """The whole page, its pictures NAME.png in the same folder. It links other ``pages``, {file: words}, first."""
    links = "".join(f'<p><a href="{file}"><b>{escape(words)}</b></a></p>\n' for file, words in (pages or {}).items())
    contents = "\n".join(f'<li><a href="#{s.name}">{escape(s.heading)}</a></li>' for s in sections)
    neighbours = zip([None, *sections[:-1]], sections, [*sections[1:], None], strict=True)
    body = "".join(_section(section, _turn(before, after)) for before, section, after in neighbours)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Backpropagation, made visible</title>\n<style>{STYLE}</style>\n<main>\n"
        "<h1>Backpropagation, made visible</h1>\n"
        "<p>What a network should change in itself, one idea after another, on real images. Every number comes from "
        "the hand-written backward pass that trains the network. In every picture blue raises or is positive, orange "
        "lowers or is negative.</p>\n"
        f'<p class="soft">{escape(caption)}</p>\n{links}<nav><ol>\n{contents}\n</ol></nav>\n{body}</main>\n</html>\n'
    )


def _turn(before: Section | None, after: Section | None) -> str:
    """Links to the previous and the next section."""
    back = f'<a href="#{before.name}" rel="prev">← {escape(before.heading)}</a>' if before else ""
    on = f'<a href="#{after.name}" rel="next">{escape(after.heading)} →</a>' if after else ""
    return f'<p class="turn">{back}{on}</p>'


def _section(section: Section, turn: str) -> str:
    """One idea: the words, the picture, the numbers, and the command."""
    name, made = escape(section.name), ", ".join(f"<code>{escape(function)}</code>" for function in section.made_by)
    result = _result(name, section.result) if section.result else '<p class="soft">Being computed: load again soon.</p>'
    return (
        f'<section id="{name}">\n<h2>{escape(section.heading)}</h2>\n<p>{escape(section.idea)}</p>\n{result}\n'
        f'<p class="soft">Made by {made}. Other options: '
        f"<code>python -m bp_torch explain {name} <span>--help</span></code></p>\n{turn}\n</section>\n"
    )


def _result(name: str, result: Result) -> str:
    """The picture, which leads to its full size, and the numbers, folded."""
    narrow = f'<source media="(max-width: 640px)" srcset="{name}.narrow.png">' if result.narrow else ""
    kind = "picture" if result.narrow else "picture only-wide"
    return (
        f'<a class="{kind}" href="{name}.png" title="full size"><picture>{narrow}'
        f'<img src="{name}.png" alt="{escape(result.finding)}" loading="lazy"></picture></a>\n'
        f"<details><summary>The numbers</summary>\n<pre>{escape(result.table)}</pre>\n</details>"
    )
