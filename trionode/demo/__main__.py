"""`python -m trionode.demo ROLE …`: one process of the demo; the operator starts them."""

import gc
import sys

from .roles import main

gc.freeze()  # what is imported stays until the end, where it would be looked through
sys.exit(main(sys.argv[1:]))
