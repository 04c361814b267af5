"""The index of ``explain all``: every idea in words, beside its picture and its numbers. One HTML file."""

from html import escape
from typing import NamedTuple

from bp_torch.explain import About, content_of


class Section(NamedTuple):
    """One idea, and, once it is computed, its finding and its numbers."""

    name: str
    about: About
    finding: str = ""
    table: str = ""

    @property
    def heading(self) -> str:
        """The heading, for HTML."""
        return escape(self.about.heading[0].upper() + self.about.heading[1:])


def html(caption: str, sections: list[Section], pages: dict[str, str] | None = None) -> str:
    """The whole page, its pictures NAME.png in the same folder. It links other ``pages``, {file: words}, first."""
    links = "".join(f'<p><a href="{file}"><b>{escape(words)}</b></a></p>\n' for file, words in (pages or {}).items())
    contents = "\n".join(f'<li><a href="#{s.name}">{s.heading}</a></li>' for s in sections)
    neighbours = zip([None, *sections[:-1]], sections, [*sections[1:], None], strict=True)
    body = "".join(_section(section, _turn(before, after)) for before, section, after in neighbours)
    filled = {"caption": escape(caption), "links": links, "contents": contents, "body": body}
    return content_of("index.html").format(style=content_of("index.css"), **filled)


def _turn(before: Section | None, after: Section | None) -> str:
    """Links to the previous and the next section."""
    back = f'<a href="#{before.name}" rel="prev">← {before.heading}</a>' if before else ""
    on = f'<a href="#{after.name}" rel="next">{after.heading} →</a>' if after else ""
    return f'<p class="turn">{back}{on}</p>'


def _section(section: Section, turn: str) -> str:
    """One idea: the words; the picture, which leads to its full size; the numbers, folded; and the command."""
    name, made = section.name, ", ".join(f"<code>{escape(function)}</code>" for function in section.about.made_by)
    result = (
        f'<a class="picture" href="{name}.png" title="full size"><picture>'
        f'<source media="(max-width: 640px)" srcset="{name}.narrow.png">'
        f'<img src="{name}.png" alt="{escape(section.finding)}" loading="lazy"></picture></a>\n'
        f"<details><summary>The numbers</summary>\n<pre>{escape(section.table)}</pre>\n</details>"
    )
    if not section.finding:
        result = '<p class="soft">Being computed: load again soon.</p>'
    return (
        f'<section id="{name}">\n<h2>{section.heading}</h2>\n<p>{escape(section.about.words)}</p>\n{result}\n'
        f'<p class="soft">Made by {made}. Other options: '
        f"<code>python -m bp_torch explain {name} <span>--help</span></code></p>\n{turn}\n</section>\n"
    )
