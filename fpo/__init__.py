"""The thin module behind *Alignment Collapse, Explained and Tested*."""

import warnings

# Progress bars are plain text on purpose: they stay readable in logs and in committed notebooks.
warnings.filterwarnings("ignore", message="IProgress not found")
