"""From a round's sums to its adapter: what a coordinator does and an auditor repeats, bit for bit.

Floating point here is additions, subtractions, multiplications, divisions and square roots, one by
one in an order that the protocol fixes: no matrix product and no reduction of a library's, whose
order differs between processors. (P-4.7, P-6.14)
"""
