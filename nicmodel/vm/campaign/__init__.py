"""Campaigns: one command of nicmodel run for each combination of some values, on as many workers as there are.

`plan` reads a campaign's file and makes its cells, `cell` runs one of them on a worker, `workers` has Dask run them
all, and `store` keeps what has become of each.
"""
