"""The publisher: prepare a base once (quantise, export the edge graph), release adapters. torch."""
