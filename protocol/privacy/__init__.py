"""Client-level differential privacy inside the sum: each client adds a share of the noise. (P-7)

The distributed discrete Gaussian of Kairouz, Liu and Steinke 2021 (arXiv 2102.06387). No
amplification by sampling is ever claimed: who takes part is visible to the coordinator.
"""
