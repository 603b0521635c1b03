"""Real machines: folders, certificates and processes of a coordinator and of its sites."""
