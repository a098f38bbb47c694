"""The thin module behind *Alignment Collapse, Explained and Tested*."""
