"""Sphinx configuration: Markdown pages, docstrings for what code already says, nothing fetched from anywhere."""

from __future__ import annotations

import inspect
import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util.inspect import stringify_signature
from sphinx.util.logging import getLogger

sys.path.insert(0, str(Path(__file__).parents[1]))

import hashgym
import hashgym.data
import hashgym.features
import hashgym.hashers

project, author, release = "hashgym", "the hashgym authors", hashgym.__version__
copyright = author
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]

myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3

html_theme, html_title, html_static_path = "furo", f"hashgym {release}", ["_static"]
html_css_files = ["hashgym.css"]
html_math_renderer = "mathml"  # by docutils, so that pages need no script from elsewhere
html_show_sourcelink, html_copy_source = False, False

add_module_names, default_role = False, "code"
autodoc_default_options = {"member-order": "bysource"}
autodoc_typehints = "none"  # as_written, below, sets them
maximum_signature_line_length = 88
napoleon_numpy_docstring, napoleon_use_ivar, napoleon_use_rtype = False, True, False
napoleon_attr_annotations = False
strip_signature_backslash = True  # `center_` keeps its underscore

# Every reference to a name of hashgym must resolve; names of other libraries are not looked up.
nitpicky = True
nitpick_ignore_regex = [("py:(class|exc|obj|data|mod)", r"(?!hashgym).*")]

logger = getLogger(__name__)


def parted(docstring: str) -> tuple[str, str]:
    """Split a docstring, without its first line, into text and Google-style sections of arguments."""
    _, _, rest = docstring.partition("\n")
    text, *sections = re.split(r"^(?=(?:Args|Attributes|Raises|Returns):$)", rest, flags=re.MULTILINE)
    return text.strip(), "".join(sections)


def written_once(name: str) -> str:
    """Return the Markdown that replaces ``<!-- name -->`` in a page: a docstring, or a table of registered names."""
    kind, _, what = name.partition(" ")
    if kind == "docstring":
        module, _, attribute = what.rpartition(".")
        return parted(inspect.getdoc(getattr(import_module(module), attribute)) or "")[0]
    rows: list[tuple[str, ...]]
    if what == "datasets":
        head: tuple[str, ...] = ("dataset", "what it shows", "read from")
        rows = [(f"`{info.name}`", info.description, info.reads_from) for info in hashgym.data.datasets()]
    elif what == "splits":
        head = ("dataset", "split", "what it is")
        rows = [
            (f"`{info.name}`" if not i else "", f"`{split}`", rule)
            for info in hashgym.data.datasets()
            for i, (split, rule) in enumerate(info.splits.items())
        ]
    elif what == "backbones":
        head, cuts = ("backbone", "features", "`--cut`"), hashgym.features.NETWORKS.descriptions
        rows = [(f"`{n}`", text, cuts.get(n, "")) for n, text in hashgym.features.backbones().items()]
    elif what == "hashers":
        head, rows = ("name", "what it does"), [(f"`{n}`", text) for n, text in hashgym.hashers.available().items()]
    else:
        raise ValueError(f"<!-- {name} --> is neither a docstring nor a table that can be filled in")
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(re.sub(r"(`.*?`)|([*_|])", escaped, cell) for cell in row) + " |" for row in lines
    )


def escaped(found: re.Match[str]) -> str:
    """Escape characters of plain text that Markdown would interpret, except in code."""
    return found[1] or f"\\{found[2]}"


def fill_in(app: Sphinx, page: str, source: list[str]) -> None:
    """Replace a page's ``<!-- docstring ... -->`` and ``<!-- table ... -->``."""
    source[0] = re.sub(r"^<!-- ((?:docstring|table) .*) -->$", lambda m: written_once(m[1]), source[0], flags=re.M)


class Made:
    """A default that has no name to show."""

    def __repr__(self) -> str:
        return "..."


def leave_to_page(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Keep the first line and the argument sections of a docstring in Markdown, whose text is a page of its own."""
    if any(line.startswith("## ") for line in lines):
        lines[1:] = ["", *parted("\n".join(lines))[1].splitlines()]


def keep_colons(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Restore a property's first line, of which napoleon reads the words before a colon as a type."""
    text = inspect.getdoc(obj) or ""
    if what == "property" and not parted(text)[1]:
        lines[:] = [*text.splitlines(), ""]


def as_written(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None] | None:
    """Return a signature with types as the source spells them: ``NDArray[np.bool_]``, not its expansion."""
    if signature is None or what not in ("class", "exception", "function", "method"):
        return None
    try:
        found = inspect.signature(obj)
    except (TypeError, ValueError):
        return None
    parameters = [
        parameter.replace(default=Made())
        if repr(parameter.default).startswith(("<function", "<factory"))
        else parameter
        for parameter in found.parameters.values()
    ]
    if what == "method" and parameters and parameters[0].name in ("self", "cls"):
        parameters = parameters[1:]
    text = stringify_signature(found.replace(parameters=parameters), unqualified_typehints=True)
    if what == "class":
        return text.partition(" -> ")[0], None
    return text, None


def find_public(app: Sphinx, env: Any, node: Any, content: Any) -> Any:
    """Resolve a name that is documented under another path, such as ``hashgym.data.dataset.HashingDataset``."""
    target = node.get("reftarget", "")
    domain = env.get_domain("py")
    if node.get("refdomain") != "py" or target in domain.objects:
        return None
    names = [name for name in domain.objects if name.endswith(f".{target}")]
    if not names and (found := _object(target)) is not None:
        names = [name for name in domain.objects if _object(name) is found]
    if not names:
        return None
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", min(names, key=len), node, content)


def _object(path: str) -> Any:
    """Return the object of a dotted name; None if there is none."""
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found: Any = import_module(".".join(parts[:end]))
        except ImportError:
            continue
        for part in parts[end:]:
            found = getattr(found, part, None)
        return found
    return None


def to_mathml(node: nodes.Element, *, block: bool) -> str:
    """Return a formula as MathML; LaTeX that docutils cannot read is a warning, and so fails the build."""
    try:
        return str(tex2mathml(node.astext(), as_block=block))
    except MathError as error:
        logger.warning("formula %s: %s", node.astext(), error, location=node)
        raise nodes.SkipNode from None


def math_inline(translator: Any, node: nodes.math) -> None:
    """Write a formula in a line."""
    translator.body.append(to_mathml(node, block=False))
    raise nodes.SkipNode


def math_block(translator: Any, node: nodes.math_block) -> None:
    """Write a displayed formula."""
    translator.body.append(translator.starttag(node, "div", CLASS="math") + to_mathml(node, block=True) + "</div>")
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Register the functions above with Sphinx."""
    app.add_html_math_renderer("mathml", inline_renderers=(math_inline, None), block_renderers=(math_block, None))
    app.connect("source-read", fill_in)
    app.connect("autodoc-process-docstring", leave_to_page, priority=400)  # before napoleon reads it
    app.connect("autodoc-process-docstring", keep_colons, priority=600)  # and after it
    app.connect("autodoc-process-signature", as_written)
    app.connect("missing-reference", find_public)
