"""The HTML of the page: page.html (its frame), parts.html (tables, clips, charts) and sections.html, as Jinja2 macros.

A macro escapes its arguments and returns `Markup`, which is not escaped again.
"""

from pathlib import Path

import jinja2
from markupsafe import Markup

from audiolm_jax.compare.report.charts import marker

HERE = Path(__file__).parent
NONE = Markup('<span class="none">–</span>')


def key(index: int, hollow: bool = False) -> Markup:
    """The marker of strategy number `index`, everywhere on the page."""
    return Markup(f'<svg class="key" viewBox="-7 -7 14 14" aria-hidden="true">{marker(index, 0, 0, 5, hollow)}</svg>')


_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(HERE),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)
_ENVIRONMENT.globals.update(key=key, dash=NONE)
parts = _ENVIRONMENT.get_template("parts.html").module
sections = _ENVIRONMENT.get_template("sections.html").module


def page(title: str, header: str, sections: list[tuple[str, str, str]], footer: str) -> str:
    """The HTML of a page, with its style and script in it.

    sections: (name for links, title, content as HTML); those without content are left out. header, footer: as HTML.
    """
    style, script = (HERE.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    texts = {"title": title, "header": header, "sections": sections, "footer": footer}
    return _ENVIRONMENT.get_template("page.html").render(texts, style=style, script=script).lstrip()
