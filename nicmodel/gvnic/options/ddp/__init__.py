"""Direct data placement for NVMe/TCP: the data of a read goes by DMA to where the reader wants it, not to the queue.

A receive engine beside header split, off unless `Profile.ddp_flows` gives it room, and then announced by an option of
its own (`OptionId.DDP`). What it needs from a driver are the steps that Linux calls ULP DDP (the kernel series
"nvme-tcp receive offloads"), here the operations of the inner admin command CONFIGURE_DDP:

1. `DdpOperation.ADD_FLOW4` or ``ADD_FLOW6`` when an NVMe/TCP connection is initialised: its addresses and ports as the
   device sees them (the source is the controller), its digests, and the TCP sequence number of the next PDU.
2. ``SET_UP`` before a read is sent: which command identifier, and the pieces of guest memory for its data.
3. ``TEAR_DOWN`` when it is completed, before its memory is used for anything else; ``DELETE_FLOW`` at the end.
4. ``RESYNC`` as the answer to a request for resynchronisation, see below.

The device follows the PDUs of the flow (`nicmodel.packet.nvme_tcp`). What a C2HData PDU carries for a command that is
set up it writes to that command's buffer, at the offset that the PDU says. Everything else of the frame goes the usual
way: headers of all layers, digests, other PDUs, data that cannot be placed. In the packet that the driver gets, the
headers are as they were on the wire, lengths and checksums included, the bytes that were placed are missing, and a
record (`PLACEMENT`) for each run of them is appended: where in the payload it belongs, and where it is. The completion
says how many records there are; with them the driver shows the payload to TCP as if it had been in the buffers all
along. A run that is shorter than its record stays where it is, so that no packet grows.

`RX_DDP` says in addition (in bits that are 0 without this engine), in the same way in each completion of a packet:

- ``ddp``, ``ddp_flow``: the packet belongs to this flow.
- ``digest_good``: of the data digests that end in this packet none is wrong, and all the data that they, and the one
  after them, cover went by in order. If all packets of a PDU say so, its digest holds; otherwise software has to check
  it. ``digest_bad``: a digest did not hold.
- ``resync``, ``resync_sequence``: the device asks whether a PDU begins at this sequence number.

*Loss and reordering.* Only bytes that follow those before them are placed. A segment with bytes missing before it, or
one that comes again, is delivered as any other. If only data is missing, the next header's place is known, and placing
goes on with the segment after. If a header may be among it, the device is out of sync: it looks for what may be a
header, asks the driver in the packet that has it, and follows the PDUs from there without placing anything. The driver
walks the PDUs as well, so it answers with the sequence number of the first PDU at or after the one asked about: the
same number confirms, another is where the device goes on if that is still to come.

A segment that the driver loses after the device has placed its data comes again, and is then delivered as old: what is
in a buffer is never relied upon without a record.

The device writes inside of the pieces of the buffer that was set up for the command, and nowhere else: a run of an
unknown command, or one that would leave the buffer, or a buffer that is not mapped (or shared without a descriptor),
stays in the packet and is counted (`nicmodel.gvnic.options.ddp.state.DDP`). Frames whose TCP checksum is wrong are not
looked at. The queue is one of a DQO format; headers and digests have to be read, so its buffers belong into ordinary
memory.
"""
