#!/usr/bin/env python
"""The command line; in the service's environment it is installed as `ingestion` too."""

from ingestion_project.command_line import main

if __name__ == "__main__":
    main()
