"""Where frames come from and go to: tap, packet, stream, dgram, pcap, link, switch."""
