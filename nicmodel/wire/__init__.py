"""Where frames come from and go to: tap, stream, link."""
