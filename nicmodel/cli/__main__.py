"""``python -m nicmodel.cli``."""

from nicmodel.cli.main import main

main()
