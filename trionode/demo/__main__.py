"""`python -m trionode.demo ROLE …`: one process of the demo; the operator starts them."""

import sys

from .roles import main

sys.exit(main(sys.argv[1:]))
