"""The thin module behind *Alignment Collapse, Explained and Tested*."""

import os
import warnings

# Threads that wait for work sleep. By default they spin, and beside another busy process spinning threads take the
# very cores that the others need: the loop then runs ten times longer. OpenMP reads this when torch is loaded, so
# import fpo before torch. Who has set it keeps what was set.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Progress bars are plain text on purpose: they stay readable in logs and in committed notebooks.
warnings.filterwarnings("ignore", message="IProgress not found")
