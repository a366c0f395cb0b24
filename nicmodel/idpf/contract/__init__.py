"""The contract of an idpf as rules, and what watches a driver keep them."""
