"""Files of rows: one reader for sites, simulations, releases and devices. (docs/adr/0029)"""
