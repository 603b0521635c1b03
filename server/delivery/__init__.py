"""The publisher's side of delivery: a TUF repository of releases. (P-9) No flwr, no torch."""
