"""Options beyond the real device, a folder for each: docs/options.md, docs/ddp.md."""
