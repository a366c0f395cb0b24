"""The contract between driver and gVNIC, as rules, and the checker that watches a driver keep them."""
