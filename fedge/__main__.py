"""``python -m fedge``."""

from fedge.main import main

main()
