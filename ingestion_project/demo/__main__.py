"""`python -m ingestion_project.demo [--exit]`: what `make demo` runs."""

import sys

from ingestion_project.demo.story import main

sys.exit(main())
