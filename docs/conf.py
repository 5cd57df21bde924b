"""How the documentation is built: Markdown, one theme, and tables that come from the code.

For: Sphinx, called by `make docs`. Must not know: what is documented. The one idea: a warning is an error, so that a
link, a test's name or a setting that is gone from the code stops the build instead of misleading a reader.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

from logd import __version__

project = "logd"
author = "the logd maintainers"
copyright = "the logd maintainers; Apache License 2.0"
version = release = __version__

extensions = ["myst_parser", "from_code"]
source_suffix = {".md": "markdown"}
root_doc = "index"
exclude_patterns = ["_build", "_ext"]
nitpicky = True

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4

html_theme = "furo"
html_title = f"logd {version}"
html_copy_source = False
html_show_sphinx = False
# Drawings and tables are wide; a page that scrolls sideways is worse than one that uses the screen.
html_static_path = ["_static"]
html_css_files = ["logd.css"]
# The highlighter has no words for a terminal's output; what is not named is shown as it is.
highlight_language = "none"
