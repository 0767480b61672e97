"""Sphinx builds the site from the pages of this folder: ``make docs``."""

import importlib.metadata

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

project = "dadl"
release = importlib.metadata.version("dadl")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
# Tables that scripts write; pages hold them between markers, see tools/insert_measured.py.
exclude_patterns = ["*/table.md", "*/tuning.md", "*/sts-b.md", "*/fashion-mnist.md"]

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


def _inline(self: HTML5Translator, node: nodes.math) -> None:
    self.body.append(convert(node.astext()))
    raise nodes.SkipNode


def _block(self: HTML5Translator, node: nodes.math_block) -> None:
    formula = convert(node.astext(), display="block")
    self.body.append(f'<div class="formula" tabindex="0">{formula}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Formulas become MathML, which browsers show by themselves: no script, no network."""
    app.add_html_math_renderer("mathml", inline_renderers=(_inline, None), block_renderers=(_block, None))
    app.config.html_math_renderer = "mathml"
