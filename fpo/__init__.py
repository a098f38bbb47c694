"""The thin module behind *Alignment Collapse, Explained and Tested*."""

import os
import warnings

# Threads that wait for work sleep. By default they spin, and beside another busy process spinning threads take the
# very cores that the others need: the loop then runs ten times longer. GNU's OpenMP (Linux) looks a thousand times for
# work before it sleeps: microseconds, without which the loop is a tenth slower on an idle machine. OpenMP reads both
# variables when torch is loaded, so import fpo before torch. Who has set either keeps what was set.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}

# Progress bars are plain text on purpose: they stay readable in logs and in committed notebooks.
warnings.filterwarnings("ignore", message="IProgress not found")
