"""Sphinx builds the site from the pages of this folder: ``make docs``."""

import importlib.metadata
from xml.etree.ElementTree import tostring

import ziamath
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

project = "dadl"
release = importlib.metadata.version("dadl")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
# Tables that scripts write; pages hold them between markers, see tools/insert_measured.py.
exclude_patterns = ["demos/*", "*/sts-b.md", "*/melting-points.md"]

nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(?!dadl).*"),  # of other projects, which cannot be resolved without a network
    # Types in signatures, which are named by where they are defined; documented names are those of the packages.
    (r"py:class", r"dadl_ext\.(?!(functional|reference)\.\w+$)\w+\..+"),
    (r"py:class", r"dadl\.(?!(data|self_tuning|chi_model|training)\.\w+$)\w+\..+"),
]

myst_enable_extensions = ["amsmath", "attrs_block", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
python_maximum_signature_line_length = 60
add_module_names = False

html_theme = "furo"
html_title = f"dadl {release}"
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["site.css"]

FONT_SIZE = 16  # of the drawings; browsers scale them with the text


def _formula(latex: str, *, inline: bool) -> str:
    """A drawing of the formula, in the colour and size of the text around it."""
    svg = ziamath.Latex(latex, size=FONT_SIZE, inline=inline, color="currentColor").svgxml()
    _, top, width, height = (float(number) / FONT_SIZE for number in svg.attrib["viewBox"].split())
    style = f"width: {width:.3f}em; height: {height:.3f}em; vertical-align: {-top - height:.3f}em"
    svg.attrib |= {"role": "img", "aria-label": latex, "style": style}
    return tostring(svg, encoding="unicode")


def _inline(self: HTML5Translator, node: nodes.math) -> None:
    self.body.append(_formula(node.astext(), inline=True))
    raise nodes.SkipNode


def _block(self: HTML5Translator, node: nodes.math_block) -> None:
    self.body.append(f'<div class="formula">{_formula(node.astext(), inline=False)}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Formulas are drawn as the site is built: readers need no script, no network and no mathematical font."""
    ziamath.config.svg2 = False  # which would give the glyphs of every formula the same ids
    app.add_html_math_renderer("drawn", inline_renderers=(_inline, None), block_renderers=(_block, None))
    app.config.html_math_renderer = "drawn"
