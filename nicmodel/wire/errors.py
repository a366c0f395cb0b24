"""What goes wrong with a wire; apart from `nicmodel.wire.wire`: a command that only catches it loads no numpy."""


class WireError(Exception):
    """A wire cannot be opened or has failed for good; the text says what to do."""
